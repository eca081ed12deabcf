"""The sampler with real processes under a fake engine: QEMUs that answer, hang, are replaced and end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from test_sampling_reader import PROGRAM, process

from fakes.world import World
from helpers import run
from innkeeper.agent.context import Context
from innkeeper.agent.sampling.sampler import ANSWER_WITHIN_S, Sampler
from innkeeper.engine.base import Counters, DiskCounters, ThreadIds
from innkeeper.engine.fake import FakeMachine
from innkeeper.spec.instance import State
from innkeeper.spec.metrics import InstanceMetrics

SLEEPER = PROGRAM.replace("spin)", "rest)")


@dataclass
class Sampled:
    world: World
    ctx: Context
    sampler: Sampler

    def machine(self, name: str) -> FakeMachine:
        machine = self.ctx.running[self.ctx.records[name].uid].machine
        assert isinstance(machine, FakeMachine)
        return machine

    async def metrics(self, name: str, *, after_s: float = 0.3) -> InstanceMetrics:
        await asyncio.sleep(after_s)
        found = await self.sampler.metrics(max_age_s=0.0)
        return next(one for one in found.instances if one.name == name)


@contextlib.asynccontextmanager
async def sampled(root: Path) -> AsyncIterator[Sampled]:
    world = World(root)
    async with world.daemon() as ctx:
        sampler = Sampler(ctx)
        try:
            yield Sampled(world, ctx, sampler)
        finally:
            await sampler.close()


def _disk(many: int) -> Counters:
    return Counters((DiskCounters("root", many * 512, 0, many, 0, 0),), kvm={"exits": many})


def test_a_busy_and_an_idle_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        with process() as busy, process(SLEEPER) as idle:
            async with sampled(tmp_path) as one:
                await one.world.create("busy")
                await one.world.create("idle")
                await one.world.create("off", on=False)
                one.machine("busy").pid, one.machine("idle").pid = busy.pid, idle.pid
                first = await one.metrics("busy", after_s=0)
                assert first.cpu.used is None and first.memory.resident  # nothing was read twice yet
                seen = await one.metrics("busy", after_s=0.6)
                assert seen.cpu.used is not None and seen.cpu.used > 0.05
                vcpu = seen.cpu.threads[0]
                assert vcpu.name == "vcpu0" and vcpu.waited is not None and vcpu.used + vcpu.waited > 0.8
                quiet = await one.metrics("idle", after_s=0)
                assert quiet.cpu.used is not None and quiet.cpu.used < 0.05
                off = await one.metrics("off", after_s=0)
                assert off.state == "stopped" and off.cpu.used is None and off.memory.resident is None
                told = one.sampler.history("busy", 0.0, 5)
                assert told.average["vcpu0"][-1] == seen.cpu.threads[0].used or len(told.times) > 1
                assert one.sampler.history("", 0.0, 60).average["cpu"]

    run(scenario())


def test_a_process_that_takes_over_gives_no_absurd_rates(tmp_path: Path) -> None:
    """Its counters are another process's: lower or higher, they mean nothing beside the old ones."""

    async def scenario() -> None:
        with process() as old, process() as new:
            async with sampled(tmp_path) as one:
                await one.world.create("web")
                one.machine("web").pid = new.pid
                one.machine("web").counted = _disk(1_000_000)
                await one.metrics("web", after_s=0)
                total = (await one.metrics("web", after_s=0.4)).totals["cpu_seconds"]
                running = one.ctx.running[one.ctx.records["web"].uid]
                running.at_rest.clear()  # the hand-over begins: two processes, and neither is asked
                before = await one.metrics("web")
                plan = one.machine("web").plan
                running.machine = FakeMachine(plan, one.world.engine, old.pid, counted=_disk(5))
                running.at_rest.set()
                seen = await one.metrics("web")
                assert seen.cpu.used is None and seen.disk is None and seen.kvm is None
                assert before.cpu.used is None or before.cpu.used <= 1.5
                running.machine.counted = _disk(10)
                seen = await one.metrics("web", after_s=1.2)
                assert seen.cpu.used is not None and 0 <= seen.cpu.used <= 1.5
                assert seen.disk is not None and 0 <= seen.disk.read_ops < 10
                assert seen.kvm is not None and 0 <= seen.kvm["exits"] < 10
                assert seen.totals["cpu_seconds"] >= total  # they only grow

    run(scenario())


def test_one_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        with process() as busy, process(SLEEPER) as stuck:
            async with sampled(tmp_path) as one:
                for name, pid in (("busy", busy.pid), ("stuck", stuck.pid)):
                    await one.world.create(name)
                    one.machine(name).pid = pid

                async def never() -> Counters:
                    await asyncio.Event().wait()
                    raise AssertionError

                one.machine("stuck").counters = never  # type: ignore[method-assign]
                await one.metrics("busy", after_s=0)
                begun = time.monotonic()
                seen = await one.metrics("busy", after_s=0.9)
                assert time.monotonic() - begun < 0.9 + ANSWER_WITHIN_S + 0.5
                assert seen.cpu.used is not None and seen.disk is not None
                stuck_seen = await one.metrics("stuck", after_s=0)
                assert stuck_seen.cpu.used is not None and stuck_seen.disk is None

    run(scenario())


def test_a_hung_one_is_not_asked_at_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        with process(SLEEPER) as child:
            async with sampled(tmp_path) as one:
                await one.world.create("web")
                one.machine("web").pid = child.pid
                record = one.ctx.records["web"]
                await one.ctx.publish(record, state=State.HUNG)
                await one.metrics("web", after_s=0)
                assert "counters web" not in one.world.engine.calls
                await one.ctx.publish(record, state=State.RUNNING)
                await one.metrics("web")
                assert "counters web" in one.world.engine.calls

    run(scenario())


def test_an_idle_one_is_asked_seldom(tmp_path: Path) -> None:
    async def scenario() -> None:
        with process() as busy, process(SLEEPER) as idle:
            async with sampled(tmp_path) as one:
                for name, pid in (("busy", busy.pid), ("idle", idle.pid)):
                    await one.world.create(name)
                    one.machine(name).pid = pid
                for _ in range(5):
                    await one.metrics("busy", after_s=0.8)
                calls = one.world.engine.calls
                assert calls.count("counters busy") >= 4
                assert calls.count("counters idle") <= 2

    run(scenario())


def test_qemu_says_which_thread_is_which(tmp_path: Path) -> None:
    async def scenario() -> None:
        with process() as child:
            async with sampled(tmp_path) as one:
                await one.world.create("web")
                tids = sorted(int(tid) for tid in os.listdir(f"/proc/{child.pid}/task"))
                one.machine("web").pid = child.pid
                one.machine("web").threads = ThreadIds((tids[2], tids[1]), {"fast": tids[4]})
                await one.metrics("web", after_s=0)
                await one.metrics("web")
                seen = await one.metrics("web")
                found = {thread.name: thread.tid for thread in seen.cpu.threads}
                assert found == {"vcpu0": tids[2], "vcpu1": tids[1], "emulator": child.pid, "fast": tids[4]}

    run(scenario())


def test_its_end_closes_everything_and_keeps_the_history(tmp_path: Path) -> None:
    async def scenario() -> None:
        before = len(os.listdir("/proc/self/fd"))
        with process() as child:
            async with sampled(tmp_path) as one:
                await one.world.create("web")
                one.machine("web").pid = child.pid
                files = one.ctx.paths.instance(one.ctx.records["web"].uid)
                await one.metrics("web", after_s=0)
                await one.metrics("web")
                one.machine("web").die(0)
                for _ in range(200):
                    if files.history.exists():
                        break
                    await asyncio.sleep(0.01)
                assert one.sampler._budget.held == 0 and not one.sampler._trackers
                told = one.sampler.history("web", 0.0, 60)  # from the file
                assert told.average["vcpu0"]
                seen = await one.metrics("web", after_s=0)
                assert seen.cpu.used is None and seen.totals == {}
                await one.world.want("web", removed=True, wait=False)
                for _ in range(200):
                    if not files.directory.exists():
                        break
                    await asyncio.sleep(0.01)
                assert not files.directory.exists()
        assert len(os.listdir("/proc/self/fd")) == before

    run(scenario())


def test_history_outlives_the_daemon(tmp_path: Path) -> None:
    async def scenario() -> None:
        with process() as child:
            async with sampled(tmp_path) as one:
                await one.world.create("web")
                one.machine("web").pid = child.pid
                await one.metrics("web", after_s=0)
                await one.metrics("web")
                machines = one.world.engine.machines
            again = Sampler(one.ctx)  # the next daemon's: it adopts the VM, and goes on
            assert machines
            first = again.history("web", 0.0, 60)
            assert first.average["vcpu0"] and again.history("", 0.0, 60).average["cpu"]
            await again.metrics(max_age_s=0.0)
            await asyncio.sleep(0.3)
            await again.metrics(max_age_s=0.0)
            assert len(again.history("web", 0.0, 60).times) > len(first.times) - 1
            await again.close()

    run(scenario())
