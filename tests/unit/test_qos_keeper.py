"""A VM's control group over its life, and what becomes of one that somebody else meddles with."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fakes.cgroups import FakeHost
from fakes.world import World
from helpers import run
from innkeeper.agent import leaks
from innkeeper.agent.leaks import Leaks
from innkeeper.agent.qos import keeper as keeper_module
from innkeeper.agent.qos.keeper import REMADE_NOTE, QosKeeper
from innkeeper.spec.instance import Power, StopMode

Scenario = Callable[[World, FakeHost], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    monkeypatch.setattr(leaks, "BETWEEN_LOOKS_S", 0.001)

    def play_it(scenario: Scenario) -> None:
        async def inside() -> None:
            host, world = FakeHost(tmp_path / "host", v2=("cpu", "memory", "io")), World(tmp_path)
            world.cgroups = host.detect()
            await scenario(world, host)

        run(inside())

    return play_it


def test_it_is_there_while_the_vm_runs(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World, host: FakeHost) -> None:
        async with world.daemon() as ctx:
            uid = (await world.create()).record.uid
            await QosKeeper(ctx).look()
            assert world.cgroups.leftover().keys() == {uid}
            group = world.cgroups.get(uid)
            assert group is not None
            assert group.pids() == {world.machine().pid}
            host.end(world.machine().pid)
            await world.want(power=Power.OFF, stop=StopMode.KILL)
            await world.cgroups.close()
            assert world.cgroups.leftover() == {}

    play(scenario)


def test_the_next_daemon_finds_it_and_removes_those_of_others(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World, host: FakeHost) -> None:
        async with world.daemon() as ctx:
            uid = (await world.create()).record.uid
            await QosKeeper(ctx).look()
            pid = world.machine().pid
            host.process(pid, f"0::/{world.cgroups.bases['cpu'].path.name}/{uid}")
        world.cgroups = host.detect()
        world.cgroups.create("nobody")
        async with world.daemon():
            assert world.cgroups.leftover().keys() == {uid}
            group = world.cgroups.get(uid)
            assert group is not None
            assert group.pids() == {pid}

    play(scenario)


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "moved out"])
def test_somebody_meddles_with_it(play: Callable[[Scenario], None], removed: bool) -> None:
    async def scenario(world: World, host: FakeHost) -> None:
        async with world.daemon() as ctx:
            uid = (await world.create()).record.uid
            keeper = QosKeeper(ctx)
            await keeper.look()
            assert (await world.repo.view("web")).status.note == ""
            group = world.cgroups.get(uid)
            assert group is not None
            host.end(world.machine().pid)  # out of it
            if removed:
                host.rmdir(group.paths[0])
            await keeper.look()
            assert group.pids() == {world.machine().pid}
            assert (await world.repo.view("web")).status.note == REMADE_NOTE

    play(scenario)


def test_moved_out_of_one_hierarchy_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        host, world = FakeHost(tmp_path / "host", v1=("cpu", "cpuacct", "memory", "blkio")), World(tmp_path)
        world.cgroups = host.detect()
        async with world.daemon() as ctx:
            uid = (await world.create()).record.uid
            keeper, pid = QosKeeper(ctx), world.machine().pid
            await keeper.look()
            group = world.cgroups.get(uid)
            assert group is not None and group.holds(pid)
            host.write(host.root / "sys/fs/cgroup/cpu/cgroup.procs", str(pid))
            assert not group.holds(pid)
            await keeper.look()
            assert group.holds(pid)
            assert (await world.repo.view("web")).status.note == REMADE_NOTE

    run(scenario())


def test_many_that_start_make_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "GATHER_S", 0.05)

    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon() as ctx:
            looks, looked = 0, asyncio.Event()

            async def look() -> None:
                nonlocal looks
                looks += 1
                looked.set()

            keeper = QosKeeper(ctx)
            monkeypatch.setattr(keeper, "look", look)
            task = asyncio.create_task(keeper.run())
            await looked.wait()
            looked.clear()
            for _ in range(10):
                ctx.qos_changed.set()
                await asyncio.sleep(0)
            await looked.wait()
            task.cancel()
            assert looks == 2

    run(scenario())


def test_a_host_that_refuses_runs_vms_all_the_same(
    play: Callable[[Scenario], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World, host: FakeHost) -> None:
        host.fail["mkdir"] = errno.ENOSPC
        async with world.daemon() as ctx:
            view = await world.create()
            keeper = QosKeeper(ctx)
            for _ in range(3):
                await keeper.look()
            assert view.status.state == "running"
            assert sum("Cannot make the control group" in line for line in caplog.messages) == 1

    play(scenario)


def test_one_of_nobody_is_a_leak(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World, host: FakeHost) -> None:
        async with world.daemon() as ctx:
            await world.create()
            await QosKeeper(ctx).look()
            off = (await world.create("off", on=False)).record.uid
            for uid in ("nobody", off):
                world.cgroups.create(uid)
            found = await Leaks(ctx).find()
            assert [(one.kind, one.path.name) for one in found] == sorted(
                ("control group", uid) for uid in ("nobody", off)
            )
            await Leaks(ctx).remove()
            assert await Leaks(ctx).find() == []

    play(scenario)
