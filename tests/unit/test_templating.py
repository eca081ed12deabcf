"""Which template an instance can start from, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from innkeeper.control.templating import behind_image, unlike
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, InstanceStatus, Wanted
from innkeeper.store.view import InstanceView

MADE = {"image": "tiny", "machine": {"type": "pc-q35-7.2"}, "networks": [{"mac": "52:54:00:00:00:01"}]}


def spec(**fields: Any) -> InstanceSpec:
    return InstanceSpec.model_validate({"image": "tiny", **fields})


def view(name: str = "t", *, spares: int = 0, token: str = "t", **changes: Any) -> InstanceView:
    wanted = Wanted.model_validate({"template": {"serves_image": True}} | changes)
    record = InstanceRecord(
        name=name, uid=name, created_at=0.0, host="h", image_id="i", spec=spec(**MADE), wanted=wanted
    )
    return InstanceView(record, InstanceStatus(template=token, spares=spares), 1)


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the same": ({}, []),
    "an alias of its machine": ({"machine": {"type": "q35"}}, []),
    "another machine": ({"machine": {"type": "pc"}}, ["machine.type"]),
    "ports, labels and policy": (
        {
            "networks": [{"forward": [{"host": 8080, "guest": 80}]}],
            "labels": {"a": "b"},
            "restart_policy": "always",
            "wait_for_agent": False,
        },
        [],
    ),
    "more memory": ({"memory": {"size": "1GiB"}}, ["memory.size"]),
    "more vCPUs": ({"cpu": {"count": 2}}, ["cpu.count"]),
    "a MAC of its own": ({"networks": [{"mac": "52:54:00:00:00:02"}]}, ["networks.0.mac"]),
    "no network": ({"networks": []}, ["networks"]),
    "another disk": ({"disks": [{"name": "d", "size": "1MiB"}]}, ["disks"]),
    "user data": ({"user_data": "#cloud-config"}, ["user_data"]),
}


@pytest.mark.parametrize(("asked", "differs"), CASES.values(), ids=CASES)
def test_unlike(asked: dict[str, Any], differs: list[str]) -> None:
    assert unlike(view().record, spec(**asked)) == differs


def test_behind_an_image() -> None:
    assert behind_image(spec(), "i", []) is None
    assert behind_image(spec(), "other", [view()]) is None
    assert behind_image(spec(), "i", [view(token="")]) is None, "not frozen (yet)"
    assert behind_image(spec(), "i", [view(template={"serves_image": False})]) is None
    assert behind_image(spec(), "i", [view(template=None)]) is None
    assert behind_image(spec(), "i", [view(removed=True)]) is None
    assert behind_image(spec(cpu={"count": 2}), "i", [view()]) is None
    chosen = behind_image(spec(), "i", [view("b"), view("a"), view("c", spares=1)])
    assert chosen is not None and chosen.name == "c"
    chosen = behind_image(spec(), "i", [view("b"), view("a")])
    assert chosen is not None and chosen.name == "a"
