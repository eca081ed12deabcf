"""Which thread of a VM runs on which CPUs of the host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fakes.world import World
from helpers import run
from innkeeper.agent.ops.pinning import affinities, refuse_absent
from innkeeper.api.verbs.set import set_
from innkeeper.control.placement import absent_cpus
from innkeeper.engine.base import ThreadIds
from innkeeper.engine.fake import FakeMachine
from innkeeper.errors import Unsupported
from innkeeper.spec.cpu import Cpu
from innkeeper.spec.host import HostFacts
from innkeeper.spec.instance import InstanceSpec, InstanceUpdate

THREADS = ThreadIds((10, 11, 12), {"disks": 20})
OTHERS = (10, 11, 12, 20, 30, 31)
EVERY = frozenset({0, 1, 2, 3})
ALL = set(EVERY)

CASES: dict[str, tuple[dict[str, Any], dict[int, set[int]]]] = {
    "a vCPU": ({"pin": {"1": "2"}}, {10: ALL, 11: {2}, 12: ALL, 20: ALL, 30: ALL}),
    "the rest of QEMU": ({"emulator": "3"}, {10: ALL, 20: {3}, 30: {3}, 31: {3}}),
    "disks of their own": ({"emulator": "3", "iothreads": "0-1"}, {11: ALL, 20: {0, 1}, 31: {3}}),
    "nothing any more": ({}, {10: ALL, 20: ALL, 31: ALL}),
}


@pytest.mark.parametrize("case", CASES)
def test_affinities(case: str) -> None:
    spec, expected = CASES[case]
    found = affinities(Cpu.model_validate(spec), THREADS, OTHERS, EVERY)
    assert set(found) == {10, 11, 12, 20, 30, 31}
    assert {thread: set(found[thread]) for thread in expected} == expected


def test_a_cpu_the_host_lacks() -> None:
    cpu = Cpu.model_validate({"pin": {"0": "1,9"}})
    with pytest.raises(Unsupported, match="pinned to CPU 9, which this host does not have"):
        refuse_absent(cpu, EVERY)
    refuse_absent(cpu, {1, 9})
    spec = InstanceSpec(image="tiny", cpu=cpu)
    facts = HostFacts(memory_bytes=1, memory_available_bytes=1, cpu_ids=(0, 1, 2, 3))
    objection = absent_cpus(spec, facts)
    assert objection is not None and "CPU 9" in objection.reason and "0-3" in objection.reason
    assert absent_cpus(InstanceSpec(image="tiny"), facts) is None


def test_pins_are_set_at_the_start_and_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: dict[int, set[int]] = {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cpus: set_to.update({thread: set(cpus)}))

    async def ids(machine: FakeMachine) -> ThreadIds:
        first = machine.pid * 10
        return ThreadIds(tuple(first + index for index in sorted(machine.present)), {"disks": first + 300})

    monkeypatch.setattr(FakeMachine, "thread_ids", ids)

    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec={"cpu": {"count": 1, "pin": {"0": "1"}}})
            first = world.machine().pid * 10
            assert set_to[first] == {1} and set_to[first + 300] == ALL
            wish = InstanceUpdate.model_validate({"cpu": {"count": 2, "pin": {"1": "3"}, "emulator": "2"}})
            await set_(world.repo, "web", wish)
            assert set_to[first] == ALL, "no longer pinned"
            assert set_to[first + 1] == {3} and set_to[first + 300] == {2}
            set_to.clear()
            await world.create("free")
            assert not set_to, "what is not pinned is not touched"

    run(scenario())
