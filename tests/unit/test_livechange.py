"""Which changes a running VM takes up at once, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from innkeeper.spec.instance import InstanceSpec, InstanceStatus, InstanceUpdate
from innkeeper.spec.livechange import LIVE, effects
from innkeeper.spec.qos import MemoryQosUpdate


def spec(**fields: Any) -> InstanceSpec:
    return InstanceSpec.model_validate({"image": "tiny", **fields})


RUNS = InstanceStatus(cpus=2, cpus_max=4)

CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], tuple[str, ...], dict[str, str]]] = {
    # changed paths, the spec then, what is done now, what waits
    "labels": (("labels",), {"cpu": {"count": 2}}, (), {}),
    "the policy": (("restart_policy",), {"cpu": {"count": 2}}, (), {}),
    "more vCPUs": (("cpu.count",), {"cpu": {"count": 4}}, ("cpu.count",), {}),
    "fewer vCPUs": (("cpu.count",), {"cpu": {"count": 1}}, ("cpu.count",), {}),
    "too many vCPUs": (
        ("cpu.count",),
        {"cpu": {"count": 5}},
        (),
        {"cpu.count": "it runs with room for 4 vCPUs (cpu.max)"},
    ),
    "another model": (("cpu.model",), {"cpu": {"count": 2}}, (), {"cpu.model": ""}),
    "a disk's bus": (("disks.0.bus",), {"cpu": {"count": 2}}, (), {"disks.0.bus": ""}),
    "live and not": (
        ("cpu.count", "memory.size"),
        {"cpu": {"count": 3}},
        ("cpu.count",),
        {"memory.size": "it was started without memory.max, so it has no room for more"},
    ),
    "nothing, but the guest kept a vCPU": ((), {"cpu": {"count": 1}}, ("cpu.count",), {}),
    "nothing, and there was no room": ((), {"cpu": {"count": 5}}, (), {}),
    "nothing": ((), {"cpu": {"count": 2}}, (), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_effects(name: str) -> None:
    changed, fields, now, later = CASES[name]
    found = effects(changed, spec(**fields), RUNS)
    assert (found.now, found.later) == (now, later)


def test_the_update_has_what_may_change_live() -> None:
    """`InstanceUpdate` is the type of such a change, LIVE what becomes of it; they know the same fields."""
    paths = set()
    for name, field in InstanceUpdate.model_fields.items():
        inner = [kind for kind in getattr(field.annotation, "__args__", ()) if hasattr(kind, "model_fields")]
        paths |= {f"{name}.{below}" for kind in inner for below in kind.model_fields} or {name}
    # What is in a list, or has parts that can be taken away, is changed by the whole spec (apply).
    of_memory = {path for path in LIVE if path.startswith("qos.memory.")}
    assert paths == set(LIVE) - {"disks.*.qos", "qos.disk"} - of_memory | {"qos.memory"}
    assert of_memory == {f"qos.memory.{name}" for name in MemoryQosUpdate.model_fields}
