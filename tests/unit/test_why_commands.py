"""Each command that `inn top --why` proposes is one that `inn set` takes, as printed."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from test_attribution import VDA, asked, busy, disk, host, vm

from innkeeper.agent.attribution.parties import DiskLimit, Party
from innkeeper.cli.commands.set import changed_spec
from innkeeper.cli.specargs import pairs
from innkeeper.errors import SpecError
from innkeeper.spec.instance import InstanceSpec

GiB = 1 << 30
SPECS: dict[str, dict[str, Any]] = {
    "web": {
        "cpu": {"count": 2, "pin": {"0": "0", "1": "0"}},
        "qos": {"cpu": {"limit": "0.5"}, "memory": {"limit": "512MiB"}},
        "disks": [
            {"name": "root", "size": "1GiB"},
            {"name": "data", "size": "1GiB", "qos": {"read_ops": 100, "read_ops_burst": 150}},
        ],
    },
    "batch": {
        "qos": {"cpu": {"reservation": "0.5"}, "disk": {"read_bytes": "80MB/s"}},
        "disks": [{"name": "root", "size": "1GiB"}],
    },
}
OWN = DiskLimit("disks.1.qos.read_ops", "read_ops", 100.0, "disk_did:data.read_ops", 150.0)
OF_BATCH = DiskLimit("qos.disk.read_bytes", "read_bytes", 80e6)


def _party(name: str, *rows: dict[str, float], **fields: Any) -> Party:
    return vm(name, *rows, qos=SPECS[name]["qos"], **fields)


@pytest.mark.parametrize(
    ("row", "fields", "least"),
    [
        (busy(0.3, 0.6), {"binding": "pinned"}, 3),
        (busy(0.3, 0.6, throttled=0.6), {}, 1),
        (busy(0.3, pressure_memory=0.4, resident=0.5 * GiB), {"memory_bytes": GiB}, 1),
        (busy(0.3, pressure_memory=0.4, resident=0.1 * GiB), {"memory_bytes": GiB}, 2),
        (busy(0.2, **disk(0.6, 50.0, 5e6, 5e6)), {"disks": True}, 1),
        (busy(0.2, **disk(2.0, 99.0, 5e6), **{"disk_held:vda": 2.0}), {"disk_limits": (OWN,)}, 1),
    ],
)
def test_commands_make_a_spec_that_is_valid(row: dict[str, float], fields: Any, least: int) -> None:
    batch = _party(
        "batch",
        {"cpu": 1.3, "private": 4.0 * GiB, **disk(8.0, 800.0, 60e6, 60e6)},
        disk_limits=(OF_BATCH,),
    )
    web = _party("web", row, vcpus=2, **fields)
    found = asked(web, batch, told=(host(1.9, memory_used=7.0 * GiB, **VDA),))
    commands = [one.command for one in found.causes[0].advice if one.command]
    assert len(commands) >= least, found.causes[0]
    for command in commands:
        program, verb, name, *values = shlex.split(command)
        assert (program, verb) == ("inn", "set") and values
        before = {"image": "tiny", **SPECS[name]}
        before = InstanceSpec.model_validate(before).model_dump(mode="json")
        after = InstanceSpec.model_validate(changed_spec(before, pairs(tuple(values), "field")))
        assert after != InstanceSpec.model_validate(before), command


def test_all_pins_go_at_once() -> None:
    before = InstanceSpec.model_validate({"image": "tiny", **SPECS["web"]}).model_dump(mode="json")
    assert changed_spec(before, {"cpu.pin": ""})["cpu"]["pin"] == {}
    assert changed_spec(before, {"labels": ""})["labels"] == {}
    with pytest.raises(SpecError):
        changed_spec(before, {"cpus.pin": ""})
