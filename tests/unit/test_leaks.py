"""What nobody uses is found, and nothing that somebody uses, whatever is under way."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from doctor_fakes import context, look

from fakes.world import World
from helpers import run
from innkeeper.agent import leaks
from innkeeper.agent.doctor import Finding, fix
from innkeeper.agent.leaks import Leak, Leaks
from innkeeper.api.verbs.fork import ForkOptions, fork
from innkeeper.clock import SystemClock
from innkeeper.errors import Failed
from innkeeper.spec.instance import Power, StopMode
from innkeeper.store import keys
from innkeeper.store.kv import Put

Scenario = Callable[[World], Awaitable[None]]
DISK = {"disks": [{"name": "data", "size": "1MiB"}]}
UID = "00000000-1111-2222-3333-444444444444"


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    monkeypatch.setattr(leaks, "BETWEEN_LOOKS_S", 0.001)

    def play_it(scenario: Scenario) -> None:
        async def inside() -> None:
            await scenario(World(tmp_path))

        run(inside())

    return play_it


async def forked(world: World, name: str = "web", count: int = 1) -> None:
    options = ForkOptions(count=count, until="running", timeout_s=10.0)
    await fork(world.repo, SystemClock(), name, options)


@pytest.fixture
def strays() -> Iterator[list[subprocess.Popen[bytes]]]:
    found: list[subprocess.Popen[bytes]] = []
    yield found
    for process in found:
        process.kill()
        process.wait()


def _stray(program: str, log: Path) -> subprocess.Popen[bytes]:
    """A process of that name which logs there."""
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen([program, "60"], executable="/bin/sleep", stderr=file)


def test_nothing_is_left_over_by_what_works(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon() as ctx:
            await world.create(spec=DISK)
            await world.create("off", on=False, spec=DISK)
            await forked(world, count=3)
            await forked(world, "off")
            await forked(world, "web-1")
            await world.remove("web")
            assert await Leaks(ctx).find() == []

    play(scenario)


def test_nobodys_things_are_found_and_removed(
    play: Callable[[Scenario], None], strays: list[subprocess.Popen[bytes]]
) -> None:
    async def scenario(world: World) -> None:
        paths = world.paths
        async with world.daemon() as ctx:
            await world.create(spec=DISK)
            await forked(world)
            off = await world.create("off", on=False, spec=DISK)
            web = paths.instance((await world.repo.view("web")).record.uid)
            expected = [
                Leak("layer", paths.layers / "0123456789abcdef-data.qcow2"),
                Leak("moment", paths.moments / "0123456789abcdef"),
                Leak("runtime directory", paths.runtime(UID).directory),
                Leak("runtime directory", paths.runtime(off.record.uid).directory),
                Leak("snapshot directory", paths.snapshots / "0123456789abcdef"),
            ]
            for leak in expected:
                if leak.kind == "layer":
                    leak.path.write_bytes(b"x")
                else:
                    leak.path.mkdir()
            # In doubt: they may have been put there by hand.
            doubtful = [
                Leak("disk file", web.directory / "mine.qcow2", safe=False),
                Leak("instance directory", paths.instances / UID, safe=False),
            ]
            doubtful[0].path.write_bytes(b"data")
            log = paths.instance(UID).qemu_log
            strays.append(_stray("qemu-system-x86_64", log))
            strays.append(_stray("cat", log))  # who else has the file open is none of ours
            expected.append(Leak("process", log, strays[0].pid))
            # A second name of a layer that is in use.
            second = web.directory / "data.fedcba9876543210.qcow2"
            os.link(next(path for path in paths.layers.iterdir() if path != expected[0].path), second)
            expected.append(Leak("disk file", second))
            assert await Leaks(ctx).find() == sorted([*expected, *doubtful])
            asked: list[int] = []

            async def destroy(pid: int) -> None:
                asked.append(pid)
                strays[0].kill()
                strays[0].wait()

            world.engine.destroy_stray = destroy  # type: ignore[method-assign]
            await Leaks(ctx).remove()
            assert asked == [strays[0].pid]
            assert await Leaks(ctx).find() == sorted(doubtful)
            await forked(world)  # what is used was not touched

    play(scenario)


def test_what_is_under_way_is_nobodys_leak(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon() as ctx:
            await world.create(spec=DISK)
            finder, done, looks = Leaks(ctx), asyncio.Event(), 0

            async def watch() -> None:
                nonlocal looks
                while not done.is_set():
                    assert await finder.find() == []
                    looks += 1
                    await asyncio.sleep(0)

            watching = asyncio.create_task(watch())
            for _ in range(3):
                await forked(world, count=4)
                await world.want("web-1", power=Power.OFF, stop=StopMode.KILL)
                for number in range(1, 5):
                    await world.remove(f"web-{number}")
            done.set()
            await watching
            assert looks > 5

    play(scenario)


def test_a_damaged_record_may_be_anybodys(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon() as ctx:
            await world.store.txn([], [Put(keys.instance("hurt"), b"{not json")])
            (world.paths.layers / "0123456789abcdef-data.qcow2").write_bytes(b"x")
            with pytest.raises(Failed, match="damaged"):
                await Leaks(ctx).remove()
            assert len(list(world.paths.layers.iterdir())) == 1

    play(scenario)


class _Found:
    """Leaks from a list."""

    def __init__(self, *found: Leak, error: Failed | None = None) -> None:
        self.found, self.error = list(found), error

    async def find(self) -> list[Leak]:
        if self.error:
            raise self.error
        return self.found

    async def remove(self) -> None:
        self.found = [leak for leak in self.found if not leak.safe]


LAYER, DOUBT = Leak("layer", Path("/s/layers/a")), Leak("instance directory", Path("/s/i/b"), safe=False)


def test_what_the_doctor_says_of_leaks(tmp_path: Path) -> None:
    assert look("leaks", context(tmp_path)).verdict == "info"
    assert look("leaks", context(tmp_path, leaks=_Found())).verdict == "ok"
    both = look("leaks", context(tmp_path, leaks=_Found(LAYER, LAYER, DOUBT, DOUBT)))
    assert (both.verdict, both.fixable, both.repair) == ("warn", True, "inn doctor --fix")
    assert "layer (2), instance directory (2): layer /s/layers/a;" in both.detail
    assert both.detail.endswith("and 1 more")
    doubt = look("leaks", context(tmp_path, leaks=_Found(DOUBT)))
    assert (doubt.fixable, doubt.repair) == (False, "look at it, then: rm -r '/s/i/b'")
    hurt = look("leaks", context(tmp_path, leaks=_Found(error=Failed("The record x is damaged"))))
    assert (hurt.verdict, hurt.fixable) == ("warn", False)


def test_they_are_removed_without_root(tmp_path: Path) -> None:
    where = context(tmp_path, uid=1000, leaks=_Found(LAYER))
    other = Finding("tun", "warn", "x", "modprobe tun", True)
    results = asyncio.run(fix([look("leaks", where), other], where))
    assert {one.name: one.done for one in results} == {"tun": False, "leaks": True}
    doubtful = context(tmp_path, leaks=_Found(LAYER, DOUBT))
    (left,) = asyncio.run(fix([look("leaks", doubtful)], doubtful))
    assert not left.done and "still: used by nobody: instance directory (1)" in left.detail
