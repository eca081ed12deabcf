"""The agent against a fake engine: verbs, failures, hangs, crashes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.world import World
from helpers import run
from innkeeper.agent import reconcile, retries
from innkeeper.engine.base import RunState
from innkeeper.errors import EngineError, GuestTimeout, NoCapacity, NotFound, StartFailed, StoreError
from innkeeper.spec.instance import Power, State, StopMode
from innkeeper.store.view import InstanceView

Scenario = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Scenario], None]:
    def play_it(scenario: Scenario) -> None:
        async def inside() -> None:
            await scenario(World(tmp_path))

        run(inside())

    return play_it


async def state(world: World, wanted: State, name: str = "web") -> InstanceView:
    return await world.repo.wait_for(name, lambda view: view.status.state is wanted, 5.0)


def test_create_and_start(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            view = await world.create()
            assert view.status.state is State.RUNNING
            assert view.status.accelerator == "tcg"
            assert view.status.machine == "pc-q35-7.2"
            assert view.status.pid == world.machine().pid
            assert "total" in view.status.times_ms

    play(scenario)


def test_stop_start_again_kill(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create()
            view = await world.want(power=Power.OFF)
            assert view.status.state is State.STOPPED
            assert view.status.ended is not None and view.status.ended.reason == "stopped"
            view = await world.want(power=Power.ON, epoch=2)
            assert view.status.state is State.RUNNING and view.status.epoch == 2
            view = await world.want(power=Power.OFF, stop=StopMode.KILL)
            assert view.status.ended is not None and view.status.ended.reason == "killed"
            assert not world.engine.machines

    play(scenario)


def test_pause_and_resume(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create()
            assert (await world.want(power=Power.PAUSED)).status.state is State.PAUSED
            assert world.machine().state is RunState.PAUSED
            assert (await world.want(power=Power.ON)).status.state is State.RUNNING

    play(scenario)


def test_a_guest_that_ignores_stop_keeps_running_and_says_so(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create()
            world.machine().ignores_power_button = True
            with pytest.raises(GuestTimeout, match="did not shut down within 50 ms"):
                await world.want(power=Power.OFF, stop_timeout_s=0.05)
            assert (await world.repo.view("web")).status.state is State.RUNNING

    play(scenario)


def test_a_paused_guest_that_ignores_stop_is_paused_again(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create()
            await world.want(power=Power.PAUSED)
            world.machine().ignores_power_button = True
            with pytest.raises(GuestTimeout) as caught:
                await world.want(power=Power.OFF, stop_timeout_s=0.05)
            assert "paused again" in caught.value.hint
            assert (await world.repo.view("web")).status.state is State.PAUSED
            assert world.machine().state is RunState.PAUSED
            assert (await world.want(power=Power.ON)).status.state is State.RUNNING

    play(scenario)


def test_kill_does_not_wait_for_a_stop_under_way(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create()
            world.machine().ignores_power_button = True
            await world.want(power=Power.OFF, stop_timeout_s=600.0, wait=False)
            await state(world, State.STOPPING)
            view = await world.want(power=Power.OFF, stop=StopMode.KILL)
            assert view.status.state is State.STOPPED

    play(scenario)


def test_a_hung_vm_blocks_no_other_and_can_be_killed(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create("hung")
            world.machine("hung").hang = True
            with pytest.raises(EngineError, match="did not answer"):
                await world.want("hung", power=Power.PAUSED)
            await world.create("fine")
            await world.want("hung", power=Power.OFF, stop=StopMode.KILL)
            assert (await world.repo.view("fine")).status.state is State.RUNNING

    play(scenario)


def test_a_failed_start_is_told_and_not_tried_again(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(on=False)
            world.engine.fail["launch"] = StartFailed("QEMU ended at start: no such thing")
            with pytest.raises(StartFailed, match="no such thing"):
                await world.want(power=Power.ON, epoch=1)
            del world.engine.fail["launch"]
            assert (await world.repo.view("web")).status.state is State.STOPPED
            assert world.engine.calls.count("launch web") == 1
        async with world.daemon():
            assert not world.ctx.running
            assert (await world.want(power=Power.ON, epoch=2)).status.state is State.RUNNING

    play(scenario)


def test_run_that_fails_leaves_nothing(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            world.engine.fail["launch"] = StartFailed("QEMU ended at start")
            with pytest.raises(StartFailed):
                await world.create(remove_if_start_fails=True)
            assert await world.repo.find_instance("web") is None
            assert not list(world.paths.instances.iterdir())

    play(scenario)


def test_too_little_memory_is_refused_before_anything_starts(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        world.host.available = 100 << 20
        async with world.daemon():
            with pytest.raises(NoCapacity, match="Not enough memory"):
                await world.create()
            assert "launch web" not in world.engine.calls

    play(scenario)


def test_remove_takes_files_and_entry(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            uid = (await world.create()).record.uid
            view = await world.want(removed=True, wait=False)
            with pytest.raises(NotFound):
                await world.repo.settle("web", view.record.wanted.generation, 5.0, uid=uid)
            assert not list(world.paths.instances.iterdir())
            assert not world.engine.machines

    play(scenario)


def test_a_name_can_be_used_again_at_once(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            for _ in range(5):
                view = await world.create()
                assert view.status.state is State.RUNNING and view.status.generation == 1
                removing = await world.want(removed=True, wait=False)
                uid, generation = view.record.uid, removing.record.wanted.generation
                await world.repo.settle_removed("web", generation, 5.0, uid=uid)

    play(scenario)


def test_ephemeral_goes_when_its_guest_ends(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(remove_when_ended=True)
            world.machine().die(0, "guest-shutdown")
            while await world.repo.find_instance("web"):
                await asyncio.sleep(0.005)
            assert not list(world.paths.instances.iterdir())

    play(scenario)


def test_policy_always_starts_again_and_never_does_not(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create("a", policy="always")
            await world.create("n")
            for name in ("a", "n"):
                world.machine(name).die(-9)
            view = await world.repo.wait_for("a", lambda seen: seen.status.restarts == 1, 5.0)
            assert view.status.state is State.RUNNING
            stopped = await state(world, State.STOPPED, "n")
            assert stopped.status.ended is not None and stopped.status.ended.reason == "qemu-died"

    play(scenario)


def test_vms_outlive_the_daemon_and_are_adopted(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            before = await world.create()
        assert world.engine.machines
        async with world.daemon():
            after = await world.repo.view("web")
            assert after.status.pid == before.status.pid
            assert after.status.state is State.RUNNING
            await world.want(power=Power.OFF)

    play(scenario)


@pytest.mark.parametrize(("boot_id", "reason"), [("boot-1", "ended-unseen"), ("boot-2", "host-rebooted")])
def test_a_vm_that_ended_unseen(play: Callable[[Scenario], None], boot_id: str, reason: str) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create()
        world.engine.machines.clear()
        world.host.boot_id = boot_id
        async with world.daemon():
            view = await world.repo.view("web")
            assert view.status.state is State.STOPPED
            assert view.status.ended is not None and view.status.ended.reason == reason
            assert not world.ctx.running

    play(scenario)


def test_disks_without_a_record_are_left_alone(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        stray = world.paths.instances / "somebody-restored-this"
        stray.mkdir()
        async with world.daemon():
            await world.create()
        assert stray.exists()

    play(scenario)


@pytest.mark.parametrize("end", ["by-verb", "by-itself"])
def test_what_a_full_store_could_not_take_is_written_when_there_is_room(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(retries, "STORE_RETRY_S", 0.05)
    monkeypatch.setattr(reconcile, "HEALTH_INTERVAL_S", 0.05)

    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create()
            put, refused = world.repo.put_status, 0

            async def full(*_: Any, **__: Any) -> None:
                nonlocal refused
                refused += 1
                raise StoreError("no space left")

            monkeypatch.setattr(world.repo, "put_status", full)
            if end == "by-verb":
                await world.want(power=Power.OFF, stop=StopMode.KILL, wait=False)
            else:
                world.machine().die(0, "guest-shutdown")
            while not refused:
                await asyncio.sleep(0.001)
            assert (await world.repo.view("web")).status.state is State.RUNNING
            monkeypatch.setattr(world.repo, "put_status", put)
            async with asyncio.timeout(5.0):
                while (await world.repo.view("web")).status.state is not State.STOPPED:
                    await asyncio.sleep(0.01)

    play(scenario)


def test_a_bug_in_an_operation_is_an_answer_not_a_hang(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create()
            world.engine.fail["pause"] = ZeroDivisionError("oops")
            with pytest.raises(Exception, match="oops"):
                await world.want(power=Power.PAUSED)

    play(scenario)


def test_verbs_at_random_always_settle(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create()
            epoch = 1
            for number in range(60):
                choice = number * 7 % 5
                if choice in (0, 1):
                    epoch += 1
                    await world.want(power=Power.ON, epoch=epoch, wait=False)
                elif choice == 2:
                    await world.want(power=Power.PAUSED, wait=False)
                elif choice == 3:
                    await world.want(power=Power.OFF, stop=StopMode.KILL, wait=False)
                if number % 3 == 0:
                    await asyncio.sleep(0)
            view = await world.want(power=Power.ON, epoch=epoch + 1)
            assert view.status.state is State.RUNNING
            assert len(world.engine.machines) == 1

    play(scenario)


def test_owner_is_a_user_of_its_own_per_vm(tmp_path: Path) -> None:
    world = World(tmp_path)
    first, second = world.ctx.owner("a"), world.ctx.owner("b")
    if os.geteuid() != 0:
        assert first is None and second is None
    else:
        assert first is not None and second is not None
        assert first.uid != second.uid
        assert min(first.uid, second.uid) >= 0x7000_0000
