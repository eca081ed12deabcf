"""vCPUs given to a running VM and taken back: the agent with a fake engine and a fake guest agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fakes.world import World
from helpers import run
from innkeeper.agent.ops import vcpus
from innkeeper.api.verbs.set import set_
from innkeeper.engine import plan_file
from innkeeper.errors import GuestTimeout, Unsupported
from innkeeper.guest.vcpus import GuestCpu, switches
from innkeeper.spec.instance import InstanceUpdate, Power

FIXED, ON, OFF = GuestCpu(True, False), GuestCpu(True, True), GuestCpu(False, True)


def asked(count: int) -> InstanceUpdate:
    return InstanceUpdate.model_validate({"cpu": {"count": count}})


async def grown(world: World, count: int) -> Any:
    return await set_(world.repo, "web", asked(count))


def test_more_and_fewer(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create()
            view = await grown(world, 3)
            assert world.machine().present == {0, 1, 2}
            assert (view.status.cpus, view.status.cpus_max, view.record.spec.cpu.count) == (3, 8, 3)
            plan = plan_file.load(world.paths.runtime(view.record.uid))
            assert plan is not None and plan.cpus == 3, "a fork must have as many"
            view = await grown(world, 1)
            assert world.machine().present == {0} and view.status.cpus == 1
            calls = list(world.engine.calls)
            await grown(world, 1)
            assert world.engine.calls == calls, "nothing was left to do"

    run(scenario())


def test_no_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec={"cpu": {"count": 1, "max": 2}})
            with pytest.raises(Exception, match=r"more than the 2 that cpu\.max allows"):
                await grown(world, 3)
            await world.create("wide")
            with pytest.raises(Unsupported, match="room for 8 vCPUs"):
                await set_(world.repo, "wide", asked(9))

    run(scenario())


def test_a_guest_that_keeps_its_vcpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vcpus, "UNPLUG_DEADLINE_S", 0.1)

    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec={"cpu": {"count": 2}})
            machine = world.machine()
            machine.keeps_vcpus = True
            with pytest.raises(GuestTimeout, match="did not give up vCPU 1 "):
                await grown(world, 1)
            view = await world.repo.view("web")
            assert view.status.cpus == 2 and view.status.state == "running"
            assert view.status.failure is not None
            # It is not asked again and again: another verb does its own work.
            asks = world.engine.calls.count("unplug_vcpu web")
            await world.want(power=Power.PAUSED)
            await world.want(power=Power.ON)
            assert world.engine.calls.count("unplug_vcpu web") == asks
            # Whoever wants it repeats the verb, with the same value.
            machine.keeps_vcpus = False
            view = await grown(world, 1)
            assert machine.present == {0} and view.status.cpus == 1 and view.status.failure is None

    run(scenario())


def test_where_unplugging_spoils_they_are_parked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    online = 3

    async def use(agent: object, count: int, deadline_s: float) -> int:
        nonlocal online
        online = count if online > 0 else -online
        return online

    monkeypatch.setattr(vcpus, "use_vcpus", use)

    async def scenario() -> None:
        nonlocal online
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec={"cpu": {"count": 3}})
            machine = world.machine()
            machine.unplug_spoils = True
            with pytest.raises(Unsupported, match="no guest agent answers"):
                await grown(world, 1)
            machine.agent_open = True
            view = await grown(world, 1)
            assert machine.present == {0, 1, 2} and online == view.status.cpus == 1
            plan = plan_file.load(world.paths.runtime(view.record.uid))
            assert plan is not None and (plan.cpus, plan.parked) == (3, 2)
        async with world.daemon():  # the next daemon knows it too
            assert (await world.repo.view("web")).status.cpus == 1
            view = await grown(world, 5)
            assert machine.present == {0, 1, 2, 3, 4} and online == view.status.cpus == 5
            online = -5  # the guest keeps them
            with pytest.raises(GuestTimeout, match="did not take its vCPUs out of use"):
                await grown(world, 2)
            assert (await world.repo.view("web")).status.cpus == 5

    run(scenario())


SWITCHES: dict[str, tuple[dict[int, GuestCpu], int, dict[int, bool]]] = {
    "enough": ({0: FIXED, 1: ON}, 2, {}),
    "one more": ({0: FIXED, 1: OFF, 2: OFF}, 2, {1: True}),
    "two more": ({0: FIXED, 1: OFF, 2: OFF}, 3, {1: True, 2: True}),
    "more than it knows yet": ({0: FIXED}, 3, {}),
    "one less": ({0: FIXED, 1: ON, 2: ON}, 2, {2: False}),
    "all but the first": ({0: FIXED, 1: ON, 2: ON}, 1, {1: False, 2: False}),
    "one that cannot go": ({0: FIXED, 1: FIXED, 2: ON}, 1, {2: False}),
    "none can go": ({0: FIXED}, 0, {}),
}


@pytest.mark.parametrize("case", SWITCHES)
def test_switches(case: str) -> None:
    known, count, wanted = SWITCHES[case]
    assert switches(known, count) == wanted


def test_one_that_is_given_up_late_is_noticed(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec={"cpu": {"count": 2}})
            await world.machine().unplug_vcpu(1)
            view = await world.repo.wait_for("web", lambda view: view.status.cpus == 1, 5.0)
            plan = plan_file.load(world.paths.runtime(view.record.uid))
            assert plan is not None and plan.cpus == 1

    run(scenario())


def test_paused_it_waits_until_it_runs_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create()
            await world.want(power=Power.PAUSED)
            view = await grown(world, 2)
            assert view.status.cpus == 1 and world.machine().present == {0}
            await world.want(power=Power.ON)
            view = await world.repo.wait_for("web", lambda view: view.status.cpus == 2, 5.0)
            assert world.machine().present == {0, 1}

    run(scenario())


def test_of_one_that_does_not_run_the_next_start_has_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(on=False)
            view = await grown(world, 12)
            assert view.record.wanted.generation == 1
            await world.want(power=Power.ON, epoch=1)
            assert world.machine().plan.cpus == 12 and world.machine().plan.cpus_max == 12

    run(scenario())


def test_an_older_daemons_vm_has_no_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec={"machine": {"type": "microvm"}})
            with pytest.raises(Unsupported, match="room for 1 vCPUs"):
                await grown(world, 2)

    run(scenario())
