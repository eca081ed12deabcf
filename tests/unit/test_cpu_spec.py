"""How many vCPUs, arranged how: which are possible, and for how many there is room."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from innkeeper.spec.cpu import Cpu, cpu_set, has_hotplug

POSSIBLE: dict[str, tuple[dict[str, Any], tuple[int, int, int] | None, int, int]] = {
    # spec, topology, room where vCPUs can be plugged in, room where not
    "nothing said": ({}, None, 8, 1),
    "two": ({"count": 2}, None, 8, 2),
    "more than are reserved anyway": ({"count": 12}, None, 12, 12),
    "a maximum": ({"count": 2, "max": 4}, None, 4, 4),
    "no reserve": ({"count": 2, "max": 2}, None, 2, 2),
    "all of a topology": ({"count": 4, "sockets": 2, "cores": 1, "threads": 2}, (2, 1, 2), 4, 4),
    "a topology with room": ({"count": 1, "sockets": 2, "cores": 2, "threads": 2}, (2, 2, 2), 8, 8),
    "cores follow": ({"count": 8, "sockets": 2, "threads": 2}, (2, 2, 2), 8, 8),
    "sockets follow": ({"count": 8, "cores": 4}, (2, 4, 1), 8, 8),
    "all follow from the threads": ({"count": 6, "threads": 2}, (1, 3, 2), 6, 6),
    "rounded up": ({"count": 5, "cores": 2}, (3, 2, 1), 6, 6),
    "the maximum decides": ({"count": 1, "max": 8, "cores": 4}, (2, 4, 1), 8, 8),
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_possible(name: str) -> None:
    spec, topology, room, fixed = POSSIBLE[name]
    cpu = Cpu.model_validate(spec)
    assert cpu.topology == topology
    assert (cpu.reserved(hotplug=True), cpu.reserved(hotplug=False)) == (room, fixed)


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "more than the maximum": ({"count": 4, "max": 2}, "4 vCPUs are more than the 2 that cpu.max allows"),
    "more than there is room": (
        {"count": 5, "sockets": 1, "cores": 2, "threads": 2},
        "1 socket of 2 cores with 2 threads each have room for 4 vCPUs, not for 5",
    ),
    "a maximum that does not fit": (
        {"count": 2, "max": 6, "sockets": 2, "cores": 2},
        "2 sockets of 2 cores with 1 thread each have room for 4 vCPUs, and cpu.max says 6",
    ),
    "not divisible": ({"count": 3, "max": 3, "threads": 2}, "have room for 4 vCPUs, and cpu.max says 3"),
    "too many": ({"sockets": 16, "cores": 16}, "are 256 vCPUs; a VM has 255 at most"),
    "a pin of a vCPU there never is": ({"pin": {"8": "0"}}, "cpu.pin has vCPU 8; there is room for 8"),
    "no list of CPUs": ({"pin": {"0": "1-"}}, "not a list of CPUs: '1-'"),
    "a list backwards": ({"emulator": "3-1"}, "not a list of CPUs: '3-1'"),
    "no CPU": ({"pin": {"0": "one"}}, "not a list of CPUs: 'one'"),
    "none": ({"count": 0}, "greater than or equal to 1"),
    "no core": ({"cores": 0}, "greater than or equal to 1"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible(name: str) -> None:
    spec, said = IMPOSSIBLE[name]
    with pytest.raises(ValidationError, match=said):
        Cpu.model_validate(spec)


@pytest.mark.parametrize(
    ("machine", "has"),
    [
        ("q35", True),
        ("pc", True),
        ("pc-q35-7.2", True),
        ("pc-i440fx-2.9", True),
        ("microvm", False),
        ("virt", False),
        ("virt-7.2", False),
    ],
)
def test_machines_that_take_vcpus(machine: str, has: bool) -> None:
    assert has_hotplug(machine) == has


def test_cpu_sets() -> None:
    assert cpu_set("0") == {0}
    assert cpu_set("0-2,8") == {0, 1, 2, 8}
    cpu = Cpu.model_validate({"pin": {"0": "1", "3": "2-3"}, "emulator": "7"})
    assert cpu.is_pinned and cpu.host_cpus == {1, 2, 3, 7}
    assert not Cpu().is_pinned and not Cpu().host_cpus
