"""The balloon controller's loop over engines without VMs: who is asked, who is told, who is left alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.world import World
from helpers import run
from innkeeper.agent.context import Context
from innkeeper.agent.ops import balloon as ops
from innkeeper.agent.tune import ballooning, supply
from innkeeper.agent.tune.balloon import Account
from innkeeper.agent.tune.ballooning import Balloons
from innkeeper.clock import SystemClock
from innkeeper.engine.base import EventKind, Machine
from innkeeper.engine.fake import FakeMachine
from innkeeper.engine.memory import GuestMemory
from innkeeper.errors import EngineError
from innkeeper.spec.instance import State
from innkeeper.units import MiB

GIVEN = 512 * MiB


class Clock(SystemClock):
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Scene:
    """A world whose host is short of memory as long as `available` says so."""

    def __init__(self, world: World, ctx: Context, root: Path) -> None:
        self.world, self.ctx, self.root = world, ctx, root
        self.clock = Clock()
        ctx.clock = self.clock
        self.balloons = Balloons(ctx, root=root)
        self.told = 0.0
        (root / "proc/pressure").mkdir(parents=True)
        self.available(20)

    def available(self, percent: int) -> None:
        text = f"MemTotal: {16 << 20} kB\nMemAvailable: {percent * (16 << 20) // 100} kB\n"
        (self.root / "proc/meminfo").write_text(text)

    async def look(self, times: int = 1, used: int = 100 * MiB) -> None:
        for _ in range(times):
            self.clock.now += ballooning.TICK_S
            self.told += 1
            for machine in self.world.engine.machines.values():
                left = machine.plan.ram_bytes - machine.ballooned
                if machine.guest_memory is not None:
                    machine.guest_memory = GuestMemory(self.told, available=left - used)
            await self.balloons.look()
            for _ in range(5):
                await asyncio.sleep(0)

    async def boot(self, name: str = "web", *, driver: bool = True, **spec: Any) -> FakeMachine:
        await self.world.create(name, spec={"memory": {"size": "512MiB"}, **spec})
        machine = self.world.machine(name)
        machine.guest_memory = GuestMemory(0.5, available=GIVEN) if driver else None
        return machine


def play(tmp_path: Path, story: Callable[[Scene], Any]) -> None:
    async def tell() -> None:
        world = World(tmp_path / "world")
        async with world.daemon() as ctx:
            scene = Scene(world, ctx, tmp_path / "root")
            try:
                await story(scene)
            finally:
                await scene.balloons.close()

    run(tell())


@contextlib.contextmanager
def occupied(ctx: Context, how: str) -> Iterator[None]:
    """Something is being done to the one VM there is."""
    (running,) = ctx.running.values()
    status, busy = ctx.statuses[running.uid], ctx.busy
    if how == "busy":
        ctx.busy = lambda name: True
    elif how == "moved":
        running.at_rest.clear()
    elif how == "paused":
        ctx.statuses[running.uid] = status.model_copy(update={"state": State.PAUSED})
    else:
        ctx.statuses[running.uid] = status.model_copy(update={"template": "1" * 16})
    yield
    ctx.busy = busy
    running.at_rest.set()
    ctx.statuses[running.uid] = status


def test_memory_is_taken_while_it_is_short_and_given_back_after(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        machine = await scene.boot()
        await scene.look(2)
        assert machine.told_every_s == 2, "until it is known whether its guest tells anything"
        await scene.look(20)
        assert machine.ballooned == 0 and machine.told_every_s == ballooning.CALM_S
        scene.available(1)
        await scene.look(20)
        assert GIVEN - machine.ballooned == 100 * MiB + 32 * MiB
        assert machine.told_every_s == 2
        scene.available(50)
        await scene.look(2)
        assert machine.ballooned == 0

    play(tmp_path, story)


def test_a_vm_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ballooning, "ANSWER_WITHIN_S", 0.05)

    async def story(scene: Scene) -> None:
        stuck, fine = await scene.boot("stuck"), await scene.boot("fine")

        async def never(*, every_s: int) -> None:
            await asyncio.sleep(3600)

        stuck.balloon = never  # type: ignore[method-assign,assignment]
        scene.available(1)
        await scene.look(20)
        assert fine.ballooned > 300 * MiB and stuck.ballooned == 0

    play(tmp_path, story)


def test_one_that_could_not_be_told_is_told_again(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        machine = await scene.boot()
        await scene.look(3)
        scene.available(1)
        fail, told = scene.world.engine.fail, scene.world.engine.calls
        fail["set_balloon"] = EngineError("it does not answer")
        await scene.look(20)
        assert machine.ballooned == 0 and told.count("set_balloon web") > 5
        assert "given up" not in scene.ctx.statuses[machine.plan.uid].balloon
        fail.clear()
        await scene.look(20)
        assert GIVEN - machine.ballooned == 100 * MiB + 32 * MiB

    play(tmp_path, story)


def test_one_that_is_slow_to_tell_is_asked_when_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer of before is still awaited when there is something to ask of it."""
    monkeypatch.setattr(ballooning, "ANSWER_WITHIN_S", 0.01)

    async def story(scene: Scene) -> None:
        machine = await scene.boot()
        await scene.look(3)
        ask, answers = machine.balloon, asyncio.Event()

        async def slow(*, every_s: int) -> Any:
            found = await ask(every_s=every_s)
            await answers.wait()
            return found

        machine.balloon = slow  # type: ignore[method-assign]
        scene.available(1)
        await scene.look(20)
        assert machine.ballooned == 0
        machine.balloon = ask  # type: ignore[method-assign]
        answers.set()
        await scene.look(20)
        assert GIVEN - machine.ballooned == 100 * MiB + 32 * MiB

    play(tmp_path, story)


def test_one_that_something_is_done_to_is_left_alone(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        machine = await scene.boot()
        await scene.look(3)
        scene.available(1)
        for leave in ("busy", "moved", "paused", "template"):
            with occupied(scene.ctx, leave):
                before = scene.world.engine.calls.count("balloon web")
                await scene.look(5)
                assert scene.world.engine.calls.count("balloon web") == before, leave
                assert machine.ballooned == 0

    play(tmp_path, story)


def test_a_fork_and_a_parent_that_shares_its_ram_are_never_asked_for_any(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        machine = await scene.boot()
        machine.plan = replace(machine.plan, ram_private=True)
        scene.available(1)
        await scene.look(20)
        assert "set_balloon web" not in scene.world.engine.calls
        assert scene.ctx.running[machine.plan.uid].balloon is not None
        status = scene.ctx.statuses[machine.plan.uid]
        assert status.balloon == ballooning.SHARED

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("memory", "why"),
    [
        ({"locked": True}, ballooning.LOCKED),
        ({"prealloc": True}, ballooning.TAKEN),
        ({"page_bytes": 2 << 20}, ballooning.PAGES),
    ],
)
def test_memory_that_cannot_be_taken_is_said_to_be_so(
    tmp_path: Path, memory: dict[str, Any], why: str
) -> None:
    async def story(scene: Scene) -> None:
        machine = await scene.boot()
        running = scene.ctx.running[machine.plan.uid]
        assert running.plan is not None
        running.plan = replace(running.plan, memory=replace(running.plan.memory, **memory))
        scene.available(1)
        await scene.look(20)
        assert machine.ballooned == 0
        assert scene.ctx.statuses[machine.plan.uid].balloon == why

    play(tmp_path, story)


def test_guests_that_do_not_play_along_are_named_in_the_status(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        silent, stubborn = await scene.boot("silent", driver=False), await scene.boot("stubborn")
        old = await scene.boot("old")
        stubborn.ignores_balloon = True
        running = scene.ctx.running[old.plan.uid]
        assert running.plan is not None
        running.plan = replace(running.plan, balloon=False)  # as of a daemon before there were balloons
        scene.available(1)
        await scene.look(30)
        said = {name: scene.ctx.statuses[one.plan.uid].balloon for name, one in
                {"silent": silent, "stubborn": stubborn, "old": old}.items()}  # fmt: skip
        assert "no balloon driver in its guest" in said["silent"]
        assert "given up after 20 s" in said["stubborn"]
        assert said["old"] == ballooning.NO_DEVICE
        assert "balloon old" not in scene.world.engine.calls
        assert "set_balloon silent" not in scene.world.engine.calls

    play(tmp_path, story)


def test_a_new_daemon_leaves_balloons_where_they_are(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path / "world")
        async with world.daemon() as ctx:
            scene = Scene(world, ctx, tmp_path / "root")
            machine = await scene.boot()
            scene.available(1)
            await scene.look(20)
            taken = machine.ballooned
            await scene.balloons.close()
        (tmp_path / "root/proc/pressure").rmdir()
        async with world.daemon() as ctx:
            scene = Scene(world, ctx, tmp_path / "root")
            scene.told = 1000.0
            scene.available(14)
            await scene.look(10)
            assert machine.ballooned == taken > 0
            running = ctx.running[machine.plan.uid]
            assert running.balloon_asked, "so that a fork holds it"
            await scene.balloons.close()

    run(story())


def test_never_takes_effect_at_once(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        machine = await scene.boot()
        scene.available(1)
        await scene.look(20)
        assert machine.ballooned
        record = scene.ctx.records["web"]
        memory = record.spec.qos.memory.model_copy(update={"balloon": "never"})
        qos = record.spec.qos.model_copy(update={"memory": memory})
        record = record.model_copy(update={"spec": record.spec.model_copy(update={"qos": qos})})
        scene.ctx.records["web"] = record
        await ops.fit_balloon(scene.ctx, record, scene.ctx.running[record.uid])
        assert machine.ballooned == 0 and scene.ctx.balloon_news.is_set()
        await scene.look(20)
        assert machine.ballooned == 0

    play(tmp_path, story)


def test_a_reboot_of_the_guest_empties_its_balloon(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        machine = await scene.boot()
        scene.available(1)
        await scene.look(20)
        assert machine.ballooned
        machine.emit(EventKind.RESET)
        for _ in range(20):
            await asyncio.sleep(0)
        assert machine.ballooned == 0

    play(tmp_path, story)


def test_before_a_moment_the_balloon_is_held_if_anybody_has_ever_moved_it(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        machine = await scene.boot()
        running = scene.ctx.running[machine.plan.uid]
        await ops.hold(running)
        assert "hold_balloon web" not in scene.world.engine.calls
        scene.available(1)
        await scene.look(5)
        await ops.hold(running)
        assert "hold_balloon web" in scene.world.engine.calls
        scene.world.engine.fail["hold_balloon"] = EngineError("gone")
        await ops.hold(running)  # whoever freezes it will find out

    play(tmp_path, story)


# -- the host --------------------------------------------------------------------------------------------


def test_what_the_host_has(tmp_path: Path) -> None:
    (tmp_path / "proc/pressure").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 300 kB\nHugetlb: 200 kB\n")
    assert supply.of_host(tmp_path) == Account(800 * 1024, 300 * 1024)
    assert supply.pressure(tmp_path) is None
    text = "some avg10=12.50 avg60=1.00 avg300=0.10 total=5\nfull avg10=1.00 avg60=0 avg300=0 total=1\n"
    (tmp_path / "proc/pressure/memory").write_text(text)
    assert supply.pressure(tmp_path) == 0.125


def test_ram_that_is_shared_counts_once_in_what_vms_have(tmp_path: Path) -> None:
    class Stub:
        def __init__(self, pid: int, backing: dict[tuple[int, int], int]) -> None:
            self.pid, self.backing = pid, backing

        def ram_backing(self) -> dict[tuple[int, int], int]:
            if not self.backing:
                raise EngineError("it has ended")
            return self.backing

    for pid in (1, 2, 3):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/statm").write_text("900 30 10 1 0 1 0\n")
    stubs: list[Any] = [
        Stub(1, {(0, 7): 1 * MiB}),
        Stub(2, {(0, 7): 1 * MiB}),
        Stub(3, {}),
        Stub(4, {(0, 9): 1}),
    ]
    machines: list[Machine] = stubs
    found = supply.of_vms(10 * MiB, machines, tmp_path)
    assert found == Account(10 * MiB, 10 * MiB - 2 * 20 * 4096 - 1 * MiB - 1)
