"""The bound for the memory of all VMs of a host: how it is set and shown."""

from __future__ import annotations

import pytest
from cli_harness import Inn, inn, server
from pydantic import ValidationError

from fakes.api_server import ApiServer
from innkeeper.api.bodies import HostUpdate
from innkeeper.spec.overcommit import HostSettings
from innkeeper.units import GiB, MiB

__all__ = ["inn", "server"]  # fixtures


def test_it_is_set_shown_and_taken_away(inn: Inn, server: ApiServer) -> None:
    facts = {"cpus": 2, "memory_bytes": 32 * GiB}
    record = {"name": "here", "facts": facts, "settings": {"ksm": "auto", "vms_memory": "20GiB"}}
    server.answer("PATCH", "/v1/host", record)
    server.answer("GET", "/v1/host", record)
    for word, sent in (("20GiB", 20 * GiB), ("64MiB", 64 * MiB), ("none", "none"), ("", "none")):
        out = inn("host", "set", f"vms_memory={word}").out
        assert server.requests[-1].json() == {"vms_memory": sent}
        assert "20.0 GiB at most (vms_memory)" in out
    assert "20.0 GiB at most (vms_memory)" in inn("host", "show").out


@pytest.mark.parametrize("wrong", ["much", "-1GiB", "1KiB", "63MiB", "1e30GiB", "0"])
def test_what_is_no_bound(inn: Inn, server: ApiServer, wrong: str) -> None:
    told = inn("host", "set", f"vms_memory={wrong}")
    assert told.status == 2 and len(told.err.splitlines()) == 1
    with pytest.raises(ValidationError):
        HostSettings.model_validate({"vms_memory": wrong})


def test_the_body_says_what_changes() -> None:
    assert HostUpdate.model_validate({"vms_memory": "1GiB"}).settings() == {"vms_memory": GiB}
    assert HostUpdate.model_validate({"vms_memory": "none"}).settings() == {"vms_memory": None}
    assert HostUpdate.model_validate({"ksm": "never"}).settings() == {"ksm": "never"}
    kept = HostSettings.model_validate({"vms_memory": "1GiB"}).model_dump(mode="json")
    assert HostSettings.model_validate(kept).vms_memory == GiB
