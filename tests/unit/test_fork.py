"""Forking against a fake engine: order, undo, sharing, and what stays when something fails."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fakes.world import World
from helpers import run
from innkeeper.agent import chains
from innkeeper.agent.ops import copy as copies
from innkeeper.agent.ops import fork as copying
from innkeeper.api.verbs.fork import ForkOptions, fork, names_of
from innkeeper.clock import SystemClock
from innkeeper.errors import BadRequest, EngineError, InnkeeperError, NoCapacity, Unsupported, WrongState
from innkeeper.spec.instance import Power, State
from innkeeper.store.view import InstanceView

Scenario = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Scenario], None]:
    def play_it(scenario: Scenario) -> None:
        async def inside() -> None:
            await scenario(World(tmp_path))

        run(inside())

    return play_it


async def forked(world: World, name: str = "web", count: int = 1) -> list[InstanceView]:
    options = ForkOptions(count=count, until="running", timeout_s=10.0)
    return await fork(world.repo, SystemClock(), name, options)


def layers(world: World) -> list[Path]:
    return sorted(world.paths.layers.iterdir())


DISK = {"disks": [{"name": "data", "size": "1MiB"}]}


def test_a_running_vm_into_three(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            before = (await world.create(spec=DISK)).status.pid
            views = await forked(world, count=3)
            assert [view.name for view in views] == ["web-1", "web-2", "web-3"]
            assert all(view.status.state is State.RUNNING for view in views)
            parent = await world.repo.view("web")
            assert parent.status.state is State.RUNNING and parent.status.pid != before
            assert world.engine.calls.count("freeze web") == 1
            assert len(world.engine.machines) == 4
            assert not list(world.paths.moments.iterdir())
            tops = {chains.read(world.paths.instance(view.record.uid))["data"][0].path for view in views}
            shared = {chains.read(world.paths.instance(view.record.uid))["data"][1].path for view in views}
            assert len(tops) == 3 and shared == set(layers(world)) and len(shared) == 1

    play(scenario)


def test_a_forked_parent_gets_ram_of_its_own_again_ahead_of_the_next_fork(
    play: Callable[[Scenario], None],
) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            await forked(world)
            while world.machine().ram_private:
                await asyncio.sleep(0.001)
            assert "receive web" in world.engine.calls
            assert (await world.repo.view("web")).status.pid == world.machine().pid

    play(scenario)


def test_a_second_fork_promotes_the_parent_first(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            world.host.available = 384 << 20  # not enough to do it ahead
            await forked(world)
            assert world.machine().ram_private
            await forked(world)
            assert world.engine.calls.count("freeze web") == 2
            await forked(world, "web-1")
            assert (await world.repo.view("web-1-1")).status.state is State.RUNNING
            depth = chains.read(world.paths.instance(world.ctx.records["web-1-1"].uid))["data"]
            assert len(depth) == 3

    play(scenario)


def test_a_read_only_disk_of_its_own_outlives_the_parent(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec={"disks": [{"name": "data", "size": "1MiB", "readonly": True}]})
            views = await forked(world)
            await world.remove("web")
            chain = chains.read(world.paths.instance(views[0].record.uid))["data"]
            assert all(layer.path.exists() for layer in chain) and layers(world)
            await world.remove(views[0].name)
            assert layers(world) == []

    play(scenario)


def test_layers_go_with_the_last_user(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            await forked(world, count=2)
            for name in ("web", "web-1"):
                await world.remove(name)
                assert len(layers(world)) == 1
            await world.remove("web-2")
            assert layers(world) == []

    play(scenario)


@pytest.mark.parametrize("point", ["stand_in", "freeze", "restore"])
def test_a_fork_that_fails_leaves_the_parent_as_it_was(play: Callable[[Scenario], None], point: str) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            uid = (await world.create(spec=DISK)).record.uid
            before = chains.read(world.paths.instance(uid))
            pid = world.machine().pid
            world.engine.fail[point] = EngineError("QEMU refused")
            with pytest.raises(EngineError, match="QEMU refused"):
                await forked(world, count=2)
            del world.engine.fail[point]
            assert [view.name for view in await world.repo.instances()] == ["web"]
            assert chains.read(world.paths.instance(uid)) == before
            assert world.machine().pid == pid
            assert (await world.repo.view("web")).status.state is State.RUNNING
            assert layers(world) == [] and not list(world.paths.moments.iterdir())
            assert sorted(path.name for path in world.paths.instance(uid).directory.glob("data*")) == [
                "data.qcow2"
            ]
            await forked(world)

    play(scenario)


@pytest.mark.parametrize("at", ["fork.chained", "fork.frozen"])
def test_a_disk_that_is_full_from_some_point_on(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Not even what undoes it may need room: the parent's disks are noted as they are open."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def scenario(world: World) -> None:
        async with world.daemon() as ctx:
            view = await world.create(spec=DISK)
            files = world.paths.instance(view.record.uid)
            before, pid = chains.read(files), world.machine().pid

            def checkpoint(name: str) -> None:
                if name == at:
                    monkeypatch.setattr(chains, "_write_synced", full)
                    if at == "fork.chained":
                        full()

            ctx.checkpoint = checkpoint
            with pytest.raises(NoCapacity, match="no space left"):
                await forked(world)
            assert chains.read(files) == before and all(
                layer.path.exists() for chain in before.values() for layer in chain
            )
            assert world.machine().pid == pid
            assert sorted(path.name for path in files.directory.iterdir() if "chains" in path.name) == [
                "chains.json"
            ]
            monkeypatch.undo()
            ctx.checkpoint = lambda name: None
            await forked(world)
            assert not files.chains.with_suffix(".before").exists()

    play(scenario)


def test_a_copy_that_does_not_start_takes_its_siblings_along(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            world.engine.fail["launch"] = EngineError("no restore")
            with pytest.raises(EngineError, match="no restore"):
                await forked(world, count=3)
            assert [view.name for view in await world.repo.instances()] == ["web"]
            assert (await world.repo.view("web")).status.state is State.RUNNING
            assert not list(world.paths.moments.iterdir())

    play(scenario)


def test_copies_whose_files_cannot_be_made_let_go_of_the_moment(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have nothing that would have to be removed; the moment had the RAM of the parent open for ever."""

    async def scenario(world: World) -> None:
        async with world.daemon() as ctx:
            await world.create(spec=DISK)

            def full(*_: object) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(copies, "own_layer", full)
            with pytest.raises(NoCapacity, match="no space left"):
                await forked(world, count=2)
            monkeypatch.undo()
            assert [view.name for view in await world.repo.instances()] == ["web"]
            while ctx.moments.tokens():
                await asyncio.sleep(0.001)
            assert not list(world.paths.moments.iterdir())
            while len(layers(world)) != 1:  # that which the parent itself stands on
                await asyncio.sleep(0.001)

    play(scenario)


def test_a_stopped_vm_becomes_linked_clones(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK, on=False)
            views = await forked(world, count=2)
            assert all(view.status.state is State.RUNNING for view in views)
            assert "freeze web" not in world.engine.calls
            assert (await world.repo.view("web")).status.state is State.STOPPED
            await world.want("web", power=Power.ON, epoch=1)

    play(scenario)


def test_copies_of_a_stopped_vm_may_have_other_cpus(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(on=False, spec=DISK)
            options = ForkOptions(cpus=3, until="running", timeout_s=10.0)
            (view,) = await fork(world.repo, SystemClock(), "web", options)
            assert view.record.spec.cpu.count == 3 and world.machine("web-1").plan.cpus == 3
            assert (await world.repo.view("web")).record.spec.cpu.count == 1
            await world.create("two", on=False, spec={**DISK, "cpu": {"count": 2, "max": 2}})
            with pytest.raises(BadRequest, match="cannot have 3 vCPUs: 3 vCPUs are more than the 2"):
                await fork(world.repo, SystemClock(), "two", options)
            await world.create("on", spec=DISK)
            pid = world.machine("on").pid
            with pytest.raises(WrongState, match="its copies go on from there with its 1 vCPU, not with 3"):
                await fork(world.repo, SystemClock(), "on", options)
            assert world.machine("on").pid == pid

    play(scenario)


def test_a_disk_used_in_place_is_refused_before_anything_is_paused(
    play: Callable[[Scenario], None], tmp_path: Path
) -> None:
    async def scenario(world: World) -> None:
        own = tmp_path / "own.raw"
        own.write_bytes(bytes(1 << 20))
        async with world.daemon():
            await world.create(spec={"disks": [{"name": "own", "path": str(own)}]})
            with pytest.raises(Unsupported, match="used in place"):
                await forked(world)
            assert "stand_in web" not in world.engine.calls

    play(scenario)


def test_forks_left_half_by_a_crash_are_removed(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            views = await forked(world)
        # As a daemon that was killed before the copy started would leave it.
        half = views[0].record
        await world.remove_from_store(half.name)
        world.engine.machines.pop(half.uid)
        fresh = half.model_copy(update={"uid": "11111111-2222-4333-8444-555555555555"})
        await world.repo.create_instances([fresh])
        async with world.daemon():
            with pytest.raises(InnkeeperError):
                await world.repo.settle(fresh.name, 1, 5.0)
            assert [view.name for view in await world.repo.instances()] == ["web"]

    play(scenario)


def test_names() -> None:
    assert names_of("web", 2, "", {"web-1"}) == ["web-2", "web-3"]
    assert names_of("web", 2, "ci-{}", set()) == ["ci-1", "ci-2"]
    assert names_of("web", 1, "other", set()) == ["other"]
    with pytest.raises(BadRequest, match="where the number goes"):
        names_of("web", 2, "other", set())
    with pytest.raises(BadRequest):
        names_of("web", 0, "", set())


def test_a_copy_that_is_being_removed_does_not_hold_the_moment(play: Callable[[Scenario], None]) -> None:
    """It let go before the moment was there, and is forgotten late: the disk is full."""

    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            (copy,) = await forked(world)
            origin = copy.record.fork
            assert origin is not None
            assert copying.users(world.ctx, origin.moment) == {copy.record.uid}
            wanted = copy.record.wanted.model_copy(update={"removed": True})
            world.ctx.records[copy.name] = copy.record.model_copy(update={"wanted": wanted})
            assert copying.users(world.ctx, origin.moment) == set()
            world.ctx.records[copy.name] = copy.record

    play(scenario)
