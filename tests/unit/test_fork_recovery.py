"""What a daemon makes of a fork that was cut by the end of the one before."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.world import World
from helpers import run
from innkeeper.agent import chains
from innkeeper.drivers.storage.qcow2 import is_untouched, virtual_size, write_empty
from innkeeper.engine import plan_file
from innkeeper.engine.base import Layer, RunState
from innkeeper.engine.fake import FakeMachine
from innkeeper.errors import Failed
from innkeeper.spec.instance import State

TOKEN = "0123456789abcdef"
DISK = {"disks": [{"name": "data", "size": "1MiB"}]}


async def cut_in_the_middle(world: World, *, took_over: bool) -> str:
    """As `kill -9` leaves it while two processes are there: the layers made, the chains written."""
    async with world.daemon():
        uid = (await world.create(spec=DISK)).record.uid
        old = world.machine()
    files, next_files = world.paths.instance(uid), world.paths.next_runtime(uid)
    top = files.disk("data")
    layer = world.paths.layers / f"{TOKEN}-data.qcow2"
    layer.hardlink_to(top)
    fresh = files.directory / f"data.{TOKEN}.qcow2"
    write_empty(fresh, virtual_size(top), backing=layer, backing_format="qcow2")
    chain = (Layer(fresh, "qcow2"), Layer(layer, "qcow2"))
    chains.write(files, {"data": chain})
    next_files.directory.mkdir()
    plan = replace(old.plan, disks=(replace(old.plan.disks[0], chain=chain),), ram_private=True)
    plan_file.save(next_files, plan)
    state = RunState.PAUSED if took_over else RunState.INCOMING
    world.engine.stand_ins[uid] = FakeMachine(plan, world.engine, pid=4_999_999, state=state)
    old.state = RunState.PAUSED
    return uid


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("took_over", [False, True])
def test_the_process_that_has_the_state_is_the_vm(tmp_path: Path, took_over: bool) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        uid = await cut_in_the_middle(world, took_over=took_over)
        async with world.daemon():
            view = await world.repo.view("web")
            assert (view.status.pid == 4_999_999) is took_over
            assert view.status.state is State.RUNNING, "nobody paused it, and nobody may see it paused"
            await world.want("web")  # the next verb finds it settled
            assert world.machine().state is RunState.RUNNING, "it was resumed"
            files = world.paths.instance(uid)
            disks = [path.name for path in sorted(files.directory.glob("*.qcow2"))]
            noted = [layer.path.name for layer in chains.read(files)["data"]]
            if took_over:
                assert noted == [f"data.{TOKEN}.qcow2", f"{TOKEN}-data.qcow2"]
                assert disks == [f"data.{TOKEN}.qcow2"] and names(world.paths.layers) == noted[1:]
            else:
                assert noted == disks == ["data.qcow2"] and names(world.paths.layers) == []
            assert names(world.paths.machines) == [world.paths.runtime(uid).directory.name]
            assert world.engine.stand_ins == {}

    run(scenario())


def test_what_is_in_doubt_stays(tmp_path: Path) -> None:
    """A top layer that was written to, and everything while a chain cannot be read."""

    async def scenario() -> None:
        world = World(tmp_path)
        uid = await cut_in_the_middle(world, took_over=False)
        files = world.paths.instance(uid)
        fresh = files.directory / f"data.{TOKEN}.qcow2"
        with fresh.open("r+b") as disk:
            disk.seek(3 << 16)  # the first entry of the L1 table
            disk.write(b"\x80" + bytes(6) + b"\x01")
        assert not is_untouched(fresh) and is_untouched(files.disk("data"))
        async with world.daemon():
            assert fresh.exists() and names(world.paths.layers) == []
        stray = world.paths.layers / f"{TOKEN}-stray.qcow2"
        stray.write_bytes(b"")
        files.chains.write_text("{")
        async with world.daemon():
            assert stray.exists() and fresh.exists()

    run(scenario())


def test_a_copy_that_never_got_its_state_is_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon():
            await world.create(spec=DISK)
            copy = await world.create("copy", spec=DISK, remove_if_start_fails=True)
        world.engine.machines[copy.record.uid].state = RunState.INCOMING
        origin = {"parent": "web", "parent_uid": "x", "moment": TOKEN}
        record = copy.record.model_validate(copy.record.model_dump() | {"fork": origin})

        async def to_fork() -> None:
            await world.repo.change_instance("copy", lambda one, _: record)
            status = copy.status.model_copy(update={"generation": 0, "epoch": 0, "state": State.STARTING})
            await world.repo.put_status("copy", record.uid, status)

        await to_fork()
        async with world.daemon():
            with pytest.raises(Failed, match="middle of the fork"):
                await world.repo.settle_removed("copy", 1, 5.0, uid=record.uid)
            async with asyncio.timeout(5.0):
                while len(await world.repo.instances()) > 1:
                    await asyncio.sleep(0.01)
            assert set(world.engine.machines) == {world.ctx.records["web"].uid}
            assert names(world.paths.instances) == [world.ctx.records["web"].uid]

    run(scenario())
