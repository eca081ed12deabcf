"""Templates and pools against a fake engine: nothing happens to the template, spares are claimed once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fakes.world import World
from helpers import run
from innkeeper.agent import chains, templates
from innkeeper.api.verbs.fork import ForkOptions, fork
from innkeeper.api.verbs.pause import pause
from innkeeper.api.verbs.resume import resume
from innkeeper.api.verbs.template import TemplateOptions, template
from innkeeper.clock import SystemClock
from innkeeper.engine.base import RunState
from innkeeper.errors import BadRequest, EngineError, Failed, WrongState
from innkeeper.spec.instance import Power, State
from innkeeper.store.view import InstanceView

Play = Callable[[Callable[[World], Awaitable[None]]], None]
DISK = {"disks": [{"name": "data", "size": "1MiB"}]}


@pytest.fixture
def play(tmp_path: Path) -> Play:
    def play_it(scenario: Callable[[World], Awaitable[None]]) -> None:
        async def inside() -> None:
            await scenario(World(tmp_path))

        run(inside())

    return play_it


async def made(world: World, pool: int = 0) -> InstanceView:
    await world.create(spec=DISK)
    return await template(world.repo, "web", TemplateOptions(pool=pool, timeout_s=5.0))


async def forked(world: World, count: int = 1) -> list[InstanceView]:
    return await fork(
        world.repo, SystemClock(), "web", ForkOptions(count=count, until="running", timeout_s=10.0)
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5.0):
        while not condition():
            await asyncio.sleep(0.005)


def test_copies_start_without_anything_happening_to_it(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            view = await made(world)
            assert view.status.state is State.PAUSED and view.status.template
            assert world.machine().state is RunState.INCOMING, "it was not given the state"
            before = len(world.engine.calls)
            copies = await forked(world, 3)
            assert all(copy.status.state is State.RUNNING for copy in copies)
            assert not any(call.endswith(" web") for call in world.engine.calls[before:])
            tops = [chains.read(world.paths.instance(copy.record.uid))["data"] for copy in copies]
            assert len({top[0].path for top in tops}) == 3 and len({top[1].path for top in tops}) == 1
            await world.remove("web")
            assert all(layer.path.exists() for top in tops for layer in top)
            for copy in copies:
                await world.remove(copy.name)
            assert not list(world.paths.layers.iterdir())

    play(scenario)


def test_what_needs_it_to_run_is_refused(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await made(world)
            with pytest.raises(WrongState, match="is a template"):
                await pause(world.repo, "web")
            await world.create("off", on=False, spec=DISK)
            with pytest.raises(WrongState, match="nothing to freeze"):
                await template(world.repo, "off", TemplateOptions(timeout_s=1.0))
            await world.create("own", spec=DISK)
            with pytest.raises(BadRequest, match="no image"):
                await template(world.repo, "own", TemplateOptions(serves_image=True, timeout_s=5.0))

    play(scenario)


def test_it_runs_on_and_its_copies_do_not_notice(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await made(world, pool=1)
            await until(lambda: len(world.ctx.spares.waiting) == 1)
            await forked(world)
            view = await resume(world.repo, "web")
            assert view.status.state is State.RUNNING and not view.status.template
            assert world.machine().state is RunState.RUNNING
            assert not templates.token_of(world.paths.runtime(view.record.uid))
            await until(lambda: not world.ctx.spares.waiting)
            assert (await world.repo.view("web-1")).status.state is State.RUNNING
            assert set(world.engine.machines) == {one.uid for one in world.ctx.records.values()}

    play(scenario)


@pytest.mark.parametrize("call", ["stand_in", "freeze"])
def test_one_that_cannot_be_frozen_runs_on(play: Play, call: str) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            world.engine.fail[call] = EngineError("no")
            with pytest.raises(EngineError):
                await template(world.repo, "web", TemplateOptions(timeout_s=5.0))
            del world.engine.fail[call]
            view = await world.want()
            assert view.status.state is State.RUNNING and not view.status.template
            assert view.record.wanted.template is None
            assert world.machine().state is RunState.RUNNING
            uid = view.record.uid
            assert [path.name for path in world.paths.machines.iterdir()] == [
                world.paths.runtime(uid).directory.name
            ]
            assert not list(world.paths.layers.iterdir())

    play(scenario)


def test_spares_are_claimed_once_and_made_again(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await made(world, pool=2)
            await until(lambda: len(world.ctx.spares.waiting) == 2)
            waiting = set(world.ctx.spares.waiting)
            both = await asyncio.gather(forked(world, 1), fork_as(world, "b"))
            uids = {view.record.uid for views in both for view in views}
            assert uids == waiting, "the two that waited, one each"
            more = await forked(world, 4)
            assert len({view.record.uid for view in more} | uids) == 6
            assert all(view.status.state is State.RUNNING for view in more)
            await until(lambda: len(world.ctx.spares.waiting) == 2)
            assert not waiting & set(world.ctx.spares.waiting)

    play(scenario)


async def fork_as(world: World, name: str) -> list[InstanceView]:
    return await fork(
        world.repo, SystemClock(), "web", ForkOptions(pattern=name, until="running", timeout_s=10.0)
    )


def test_a_spare_that_dies_is_replaced_and_a_smaller_pool_ends_some(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await made(world, pool=2)
            await until(lambda: len(world.ctx.spares.waiting) == 2)
            victim = next(iter(world.ctx.spares.waiting))
            world.engine.machines[victim].die(-11)
            world.ctx.spares.changed.set()
            await until(lambda: victim not in world.ctx.spares.waiting and len(world.ctx.spares.waiting) == 2)
            assert not world.paths.instance(victim).directory.exists()
            await template(world.repo, "web", TemplateOptions(pool=0, timeout_s=5.0))
            await until(lambda: not world.ctx.spares.waiting)
            assert len(world.engine.machines) == 1

    play(scenario)


def test_no_spares_where_memory_is_short(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            world.host.available = 384 << 20
            await made(world, pool=2)
            await asyncio.sleep(0.5)
            assert not world.ctx.spares.waiting

    play(scenario)


def test_the_next_daemon_finds_the_template_and_ends_its_spares(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await made(world, pool=1)
            await until(lambda: len(world.ctx.spares.waiting) == 1)
            uid = next(iter(world.ctx.spares.waiting))
            world.ctx.spares.waiting.clear()  # as if it had been killed
        assert uid in world.engine.machines
        async with world.daemon():
            assert uid not in world.engine.machines
            view = await world.repo.view("web")
            assert view.status.template and view.status.state is State.PAUSED
            assert (await forked(world))[0].status.state is State.RUNNING
            assert world.machine().state is RunState.INCOMING

    play(scenario)


def test_started_again_it_becomes_a_template_again(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            token = (await made(world)).status.template
            view = await world.want(power=Power.OFF)
            assert view.status.state is State.STOPPED and not view.status.template
            with pytest.raises(Failed, match="not a template any more"):
                templates_borrowed(world, view, token)
            await world.want(power=Power.ON, epoch=2)
            await until(lambda: world.ctx.statuses[view.record.uid].template not in ("", token))

    play(scenario)


def templates_borrowed(world: World, view: InstanceView, token: str) -> None:
    from innkeeper.spec.instance import ForkOrigin

    origin = ForkOrigin(parent="web", parent_uid=view.record.uid, moment=token, template=True)
    with templates.borrowed(world.ctx, origin):
        pass
