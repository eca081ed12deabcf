"""Clones: whole copies of disks at one moment, which share nothing; and what stays when one fails."""

from __future__ import annotations

import asyncio
import struct
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from api_harness import FACTS, HOST, serve
from cli_harness import Inn, inn, server

from fakes.api_server import ApiServer, Body, instance
from fakes.world import World
from helpers import run
from innkeeper import errors
from innkeeper.agent import chains
from innkeeper.api.admit import Admission
from innkeeper.api.verbs.clone import CloneOptions, clone
from innkeeper.api.verbs.fork import ForkOptions, fork
from innkeeper.clock import SystemClock
from innkeeper.drivers.run import SystemRunner
from innkeeper.drivers.storage import files as storage
from innkeeper.drivers.storage.qcow2 import write_empty
from innkeeper.spec.instance import State
from innkeeper.store.view import InstanceView

__all__ = ["inn", "server"]  # fixtures

Scenario = Callable[[World], Awaitable[None]]
DISK = {"machine": {"type": "pc-q35-7.2"}, "disks": [{"name": "data", "size": "1MiB"}]}


def qemu_io(path: Path, command: str) -> bool:
    argv = ["qemu-io", "-f", "qcow2", "-c", command, str(path)]
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0


def has(path: Path, pattern: int, at: str) -> bool:
    return qemu_io(path, f"read -P {pattern} {at} 64k")


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Scenario], None]:
    def play_it(scenario: Scenario) -> None:
        async def inside() -> None:
            world = World(tmp_path)
            await world.repo.put_host(HOST.model_copy(update={"name": "host", "facts": FACTS}))
            await scenario(world)

        run(inside())

    return play_it


async def cloned(world: World, name: str = "web", new: str = "two", **options: Any) -> InstanceView:
    how = CloneOptions(new, timeout_s=20.0, **options)
    return await clone(world.repo, Admission(world.repo), SystemClock(), name, how)


def disk(world: World, name: str) -> Path:
    return chain(world, name)[0]


def chain(world: World, name: str) -> list[Path]:
    files = world.paths.instance(world.ctx.records[name].uid)
    return [layer.path for layer in chains.read(files)["data"]]


def test_a_running_vm_is_cloned_whole_and_runs_on(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            assert qemu_io(disk(world, "web"), "write -P 7 0 64k")
            await fork(world.repo, SystemClock(), "web", ForkOptions(until="running", timeout_s=10.0))
            assert qemu_io(disk(world, "web"), "write -P 8 128k 64k")  # a second layer
            view = await cloned(world)
            assert view.status.state is State.RUNNING and view.status.progress is None
            assert (await world.repo.view("web")).status.state is State.RUNNING
            (own,) = chain(world, "two")
            assert own == world.paths.instance(view.record.uid).disk("data")
            assert has(own, 7, "0") and has(own, 8, "128k") and not has(own, 8, "0")
            assert b"layers" not in own.read_bytes()[:4096]  # no backing file
            assert not list(world.paths.moments.iterdir())
            assert world.ctx.running[view.record.uid].plan.inherited_macs == ()  # type: ignore[union-attr]
            # It does not need what it came from.
            for name in ("web", "web-1"):
                await world.remove(name)
            assert not list(world.paths.layers.iterdir()) and has(disk(world, "two"), 7, "0")

    play(scenario)


def test_a_stopped_vm_is_cloned_without_starting_either(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK, on=False)
            view = await cloned(world, start=False)
            assert view.status.state is State.STOPPED and len(chain(world, "two")) == 1
            assert world.engine.calls == []

    play(scenario)


def test_a_clone_that_fails_leaves_nothing(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK, on=False)
            world.runner.fail["qemu-img"] = errors.CommandFailed("qemu-img failed: no space left")
            with pytest.raises(errors.InnkeeperError, match="no space left"):
                await cloned(world)
            assert [view.name for view in await world.repo.instances()] == ["web"]
            assert len(list(world.paths.instances.iterdir())) == 1
            assert not list(world.paths.moments.iterdir())
            del world.runner.fail["qemu-img"]
            await cloned(world)

    play(scenario)


def test_a_clone_cut_by_the_end_of_the_daemon_is_given_up(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        begun = asyncio.Event()

        async def endless(*args: Any) -> None:
            begun.set()
            await asyncio.Event().wait()

        async with world.daemon():
            await world.create(spec=DISK, on=False)
            with monkeypatch.context() as patch:
                patch.setattr("innkeeper.agent.ops.clone.storage.copy_chain", endless)
                cloning = asyncio.ensure_future(cloned(world))
                await begun.wait()
                cloning.cancel()
                await asyncio.gather(cloning, return_exceptions=True)
                # The parent may go meanwhile: the layer is the clone's, too.
                frozen = chain(world, "two")[0]
                assert frozen.parent == world.paths.layers
        async with world.daemon():
            with pytest.raises(errors.InnkeeperError):
                await world.repo.settle("two", 1, 5.0)
            assert [view.name for view in await world.repo.instances()] == ["web"]
            await cloned(world, new="three")

    play(scenario)


def test_too_little_room_is_refused_before_anything_is_done(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            monkeypatch.setattr("innkeeper.drivers.storage.files.FREE_RESERVE_BYTES", 1 << 60)
            with pytest.raises(errors.NoCapacity, match="Not enough disk space"):
                await cloned(world)
            assert "stand_in web" not in world.engine.calls and not list(world.paths.layers.iterdir())

    play(scenario)


def test_a_disk_in_place_is_refused(play: Callable[[Scenario], None], tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        (tmp_path / "own.raw").write_bytes(bytes(1 << 20))
        async with world.daemon():
            spec = {**DISK, "disks": [{"name": "own", "path": str(tmp_path / "own.raw")}]}
            await world.create(spec=spec, on=False)
            with pytest.raises(errors.Unsupported, match="used in place"):
                await cloned(world)

    play(scenario)


def test_headers_decide_nothing_about_what_is_copied(tmp_path: Path) -> None:
    """A guest that broke its QEMU can write anything into its disk's header."""
    secret, base, top, copy = (tmp_path / name for name in ("secret", "base", "top", "copy"))
    secret.write_bytes(b"\x09" * (1 << 20))
    write_empty(base, 1 << 20)
    assert qemu_io(base, "write -P 5 0 64k")
    write_empty(top, 1 << 20, backing=secret, backing_format="raw")
    runner = SystemRunner()
    run(storage.copy_chain(runner, [(top, "qcow2"), (base, "qcow2")], copy))
    assert has(copy, 5, "0") and has(copy, 0, "64k")
    with top.open("r+b") as file:
        file.seek(72)
        file.write(struct.pack(">Q", 1 << 2))
    with pytest.raises(errors.BadImage, match="refers to another file"):
        run(storage.copy_chain(runner, [(top, "qcow2"), (base, "qcow2")], tmp_path / "other"))


def test_clone_over_the_api(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            made = await api.call("POST", "/instances/off/clone", {"name": "two", "start": False})
            assert (made["name"], made["state"]) == ("two", "stopped")
            record = (await api.repo.view("two")).record
            assert record.fork and record.fork.full and not record.fork.live
            await api.refused("POST", "/instances/off/clone", {"name": "two"}, status=409)
            await api.refused("POST", "/instances/off/clone", {"name": "A_B"}, status=400)
            answer = await api.call("GET", "/instances/off/explain", verb="clone")
            assert answer["allowed"] and "copied as they are" in answer["findings"][0]["what"]

    run(scenario())


def test_clone_on_the_command_line(inn: Inn, server: ApiServer) -> None:
    server.answer("POST", "/v1/holds", Body(b"held\n", chunked=True))
    server.answer("POST", "/v1/instances/web/clone", instance("two"))
    server.answer("POST", "/v1/instances/two/keep", instance("two"))
    ran = inn("clone", "web", "two", "--wait", "--timeout", "9s")
    assert (ran.status, ran.out, ran.err) == (0, "two\n", "")
    body = server.sent("POST", "/v1/instances/web/clone")[0].json()
    token = server.sent("POST", "/v1/holds")[0].json()["token"]
    assert body == {
        "name": "two", "ssh_keys": False, "start": True, "wait": "ready", "hold": token, "timeout_s": 9.0,
    }  # fmt: skip
    assert len(server.sent("POST", "/v1/instances/two/keep")) == 1
    server.answer("POST", "/v1/instances/web/clone", errors.NameTaken("There is one named two"))
    assert inn("clone", "web", "two").status == 4
