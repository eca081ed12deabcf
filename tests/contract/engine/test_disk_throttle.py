"""Limits of disks: what the agent relies on of any engine, and that a real QEMU keeps to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from engine_harness import Bench, Scenario

from innkeeper.engine.base import DiskPlan, LaunchPlan, Layer, Machine
from innkeeper.engine.throttle import Throttle
from innkeeper.errors import EngineError
from innkeeper.paths import RuntimeFiles
from vms import bootables

Play = Callable[[Scenario], None]
EVERY = {
    f"{direction}_{unit}{part}": value
    for direction in ("read", "write")
    for unit in ("bytes", "ops")
    for part, value in (("", 2048), ("_burst", 4096), ("_burst_length", 7))
} | {"op_size": 8192}


def two_disks(bench: Bench, kind: bootables.Kind = "halt", **changes: Any) -> LaunchPlan:
    plan = bench.plan(kind, **changes)
    data = bootables.boot_disk(bench.root / "data.img")
    return replace(plan, disks=(*plan.disks, DiskPlan("my-data", (Layer(data, "raw"),), bus="scsi")))


def test_limits_are_set_told_shared_and_taken_away(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        machine = await bench.begin(two_disks(bench))
        assert await machine.throttles() == {"root": None, "my-data": None}
        all_of_them = Throttle("one", EVERY)
        await machine.throttle("root", all_of_them)
        assert await machine.throttles() == {"root": all_of_them, "my-data": None}
        # A group has one set of limits: those that were set last.
        fewer = Throttle("one", {"total_ops": 500})
        await machine.throttle("my-data", fewer)
        assert await machine.throttles() == {"root": fewer, "my-data": fewer}
        own = Throttle(
            "two", {"total_bytes": 10**15, "total_bytes_burst": 10**15, "total_bytes_burst_length": 1}
        )
        await machine.throttle("root", own)
        assert await machine.throttles() == {"root": own, "my-data": fewer}
        await machine.throttle("root", None)
        await machine.throttle("my-data", None)
        assert await machine.throttles() == {"root": None, "my-data": None}
        with pytest.raises(EngineError, match="disk nowhere"):
            await machine.throttle("nowhere", fewer)
        await machine.kill()
        with pytest.raises(EngineError):
            await machine.throttles()

    play(scenario)


async def reads(machine: Machine) -> int:
    return next(disk.read_ops for disk in (await machine.counters()).disks if disk.name == "root")


async def ops_per_second(machine: Machine, count: int) -> float:
    """By QEMU's own counters, over so many of them."""
    begun, first = time.monotonic(), await reads(machine)
    while (done := await reads(machine) - first) < count:
        assert time.monotonic() < begun + 60.0, f"only {done} of {count} in a minute"
        await asyncio.sleep(0.02)
    return done / (time.monotonic() - begun)


@pytest.mark.vm
def test_a_limit_is_kept_changed_and_outlives_a_hand_over(play_qemu: Play) -> None:
    async def scenario(bench: Bench) -> None:
        plan = two_disks(bench, "read")
        machine = await bench.begin(plan)
        free = await ops_per_second(machine, 200)
        slow = Throttle("g", {"total_ops": 50})
        await machine.throttle("root", slow)
        await ops_per_second(machine, 10)  # what QEMU's bucket held before
        limited = await ops_per_second(machine, 60)
        # A busy host may make it slower, never faster; the last one counted may be one too many.
        assert limited <= 50 * 1.05 < free
        # One that takes over has its own limits, set while it waits, and keeps to them.
        stand_in = await bench.engine.stand_in(
            machine, replace(plan, incoming=True), RuntimeFiles(bench.root / "next"), None
        )
        await stand_in.throttle("root", slow)
        await stand_in.receive(machine)
        machine.retire()
        await stand_in.succeed(machine)
        await stand_in.resume()
        assert await stand_in.throttles() == {"root": slow, "my-data": None}
        await ops_per_second(stand_in, 10)
        assert await ops_per_second(stand_in, 60) <= 50 * 1.05
        # Taken away, requests that waited go on at once.
        await stand_in.throttle("root", Throttle("g", {"total_ops": 1}))
        before = await reads(stand_in)
        await asyncio.sleep(0.1)
        assert await reads(stand_in) <= before + 2
        await stand_in.throttle("root", None)
        assert await ops_per_second(stand_in, 200) > 50
        await stand_in.kill()

    play_qemu(scenario)


@pytest.mark.vm
def test_a_vm_that_is_paused_does_not_wait_for_its_limits(play_qemu: Play) -> None:
    """A request that would have to wait for an hour: pausing lets it through, and takes no time."""

    async def scenario(bench: Bench) -> None:
        machine = await bench.begin(bench.plan("read"))
        await ops_per_second(machine, 10)
        await machine.throttle("root", Throttle("g", {"total_bytes": 1}))
        stuck = await reads(machine)
        await asyncio.sleep(0.2)
        assert await reads(machine) <= stuck + 1
        begun = time.monotonic()
        await machine.pause()
        assert time.monotonic() - begun < 5.0
        await machine.kill()

    play_qemu(scenario)
