"""Snapshots against a fake engine: what is kept, what comes back, and what is left when something fails."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes.world import World
from helpers import run
from innkeeper.agent import chains
from innkeeper.agent.moments import Moments
from innkeeper.agent.quiesce import FileSystems
from innkeeper.api.admit import Admission
from innkeeper.api.verbs.fork import ForkOptions, fork
from innkeeper.api.verbs.rm import rm
from innkeeper.api.verbs.save import restore, save
from innkeeper.api.verbs.snapshot_create import SnapshotOptions, snapshot_create
from innkeeper.api.verbs.snapshot_restore import RestoreOptions, snapshot_restore
from innkeeper.api.verbs.snapshot_rm import snapshot_rm
from innkeeper.clock import SystemClock
from innkeeper.drivers.storage import ramfile
from innkeeper.errors import (
    BadRequest,
    EngineError,
    Failed,
    InnkeeperError,
    NameTaken,
    NoCapacity,
    NotFound,
    StartFailed,
    Unsupported,
    WrongState,
)
from innkeeper.spec.host import HostFacts, HostRecord
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, Power, State, StopMode
from innkeeper.spec.snapshot import SnapshotLabels, SnapshotRecord, SnapshotState, check_restorable
from innkeeper.store import keys
from innkeeper.store.view import InstanceView
from innkeeper.units import MiB

Scenario = Callable[[World], Awaitable[None]]
Play = Callable[[Scenario], None]
DISK: dict[str, Any] = {"disks": [{"name": "data", "size": "1MiB"}], "memory": {"size": "16MiB"}}
CLOCK = SystemClock()


@pytest.fixture
def play(tmp_path: Path) -> Play:
    def play_it(scenario: Scenario) -> None:
        async def inside() -> None:
            world = World(tmp_path)
            facts = HostFacts(
                memory_bytes=8 << 30,
                memory_available_bytes=8 << 30,
                qemu="/usr/bin/qemu-system-x86_64",
                qemu_version="7.2.0",
                machine_types=("pc-q35-7.2",),
                machine_aliases={"q35": "pc-q35-7.2"},
            )
            await world.repo.put_host(HostRecord(name="host", facts=facts))
            await scenario(world)

        run(inside())

    return play_it


async def taken(world: World, name: str = "", of: str = "web", **options: Any) -> SnapshotRecord:
    wanted = SnapshotOptions(name, timeout_s=10.0, **options)
    return (await snapshot_create(world.repo, CLOCK, of, wanted))[0]


async def restored(world: World, snapshot: str, new_name: str = "", of: str = "web") -> InstanceView:
    options = RestoreOptions(new_name, until="running", timeout_s=10.0)
    return await snapshot_restore(world.repo, Admission(world.repo), CLOCK, of, snapshot, options)


def top(world: World, name: str = "web") -> Path:
    return chains.read(world.paths.instance(world.ctx.records[name].uid))["data"][0].path


def left(world: World) -> tuple[list[str], list[str]]:
    """Directories of snapshots, and layers."""
    return (
        sorted(path.name for path in world.paths.snapshots.iterdir()),
        sorted(path.name for path in world.paths.layers.iterdir()),
    )


def test_memory_comes_back_as_it_was(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            world.machine().memory = b"first"
            pid = world.machine().pid
            record = await taken(world, "a")
            assert record.kind == "memory" and record.consistent and record.ram_bytes == 16 * MiB
            assert world.machine().pid != pid, "it was handed over"
            assert world.machine().state.value == "running" and world.machine().memory == b"first"
            world.machine().memory = b"second"
            view = await restored(world, "a")
            assert view.status.state is State.RUNNING and view.status.snapshot == "a"
            assert world.machine().memory == b"first"
            assert not world.machine().ram_private, "it can be forked at once"
            assert (await fork(world.repo, CLOCK, "web", ForkOptions(until="running", timeout_s=10.0)))[0]
            assert not list(world.paths.moments.iterdir())

    play(scenario)


def test_what_was_written_since_is_gone(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            record = await taken(world, "a")
            before = top(world)
            assert (await world.repo.snapshots.get("web", "a")).id == record.id
            await restored(world, "a")
            after = top(world)
            assert after != before and not before.exists(), "a new layer; the old one goes"
            frozen = chains.read(world.paths.instance(world.ctx.records["web"].uid))["data"][1].path
            assert frozen.name == f"{record.id}-data.qcow2"

    play(scenario)


def test_a_tree(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            for memory, name in ((b"1", "a"), (b"2", "b")):
                world.machine().memory = memory
                await taken(world, name)
            await restored(world, "a")
            world.machine().memory = b"3"
            await taken(world, "c")
            parents = {one.name: one.parent for one in await world.repo.snapshots.of("web")}
            assert parents == {"a": "", "b": "a", "c": "a"}
            for name, memory in (("b", b"2"), ("c", b"3"), ("a", b"1")):
                await restored(world, name)
                assert world.machine().memory == memory
            await snapshot_rm(world.repo, "web", "a")
            parents = {one.name: one.parent for one in await world.repo.snapshots.of("web")}
            assert parents == {"b": "", "c": ""}
            await restored(world, "b")
            assert world.machine().memory == b"2"

    play(scenario)


def test_into_a_new_vm_while_the_first_runs(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            world.machine().memory = b"then"
            await taken(world, "a")
            world.machine().memory = b"now"
            view = await restored(world, "a", "copy")
            assert view.record.uid != (await world.repo.view("web")).record.uid
            assert world.machine("copy").memory == b"then" and world.machine().memory == b"now"
            await rm(world.repo, "web", force=True, snapshots=True)
            assert left(world)[0] == [] and len(left(world)[1]) == 1, "the copy keeps its layer"
            await world.want("copy", power=Power.OFF, stop=StopMode.KILL)
            await world.want("copy", power=Power.ON, epoch=2)
            assert world.machine("copy").memory == b"", "the next start boots"

    play(scenario)


def test_layers_and_files_go_with_the_last_user(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            await taken(world, "a")
            await taken(world, "b")
            assert [len(one) for one in left(world)] == [2, 2]
            await snapshot_rm(world.repo, "web", "b")
            await restored(world, "a")
            assert [len(one) for one in left(world)] == [1, 1], "b's layer was only the VM's own"
            with pytest.raises(WrongState, match="has snapshots"):
                await rm(world.repo, "web", force=True)
            await rm(world.repo, "web", force=True, snapshots=True)
            assert left(world) == ([], [])
            assert (await world.store.list(keys.SNAPSHOTS)).items == []

    play(scenario)


def test_disks_only_and_of_a_vm_that_is_off(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            record = await taken(world, "d", disks_only=True)
            assert record.kind == "disks" and not record.consistent and "crash-consistent" in record.note
            await restored(world, "d")
            assert (await world.repo.view("web")).status.state is State.RUNNING, "it ran, so it boots"
            await world.want("web", power=Power.OFF, stop=StopMode.KILL)
            record = await taken(world, "off")
            assert record.kind == "disks" and record.consistent and record.note == ""
            await restored(world, "off")
            assert (await world.repo.view("web")).status.state is State.STOPPED
            view = await restored(world, "off", "clone")
            assert view.status.state is State.RUNNING

    play(scenario)


def test_save_and_restore(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK, remove_when_ended=True)
            world.machine().memory = b"kept"
            view = await save(world.repo, CLOCK, "web", timeout_s=10.0)
            assert view.status.state is State.STOPPED and "inn restore web" in view.status.note
            assert view.status.ended is not None and view.status.ended.reason == "saved"
            assert world.engine.machines == {}
            with pytest.raises(BadRequest):
                await taken(world, "saved")
        async with world.daemon():
            options = RestoreOptions(until="running", timeout_s=10.0)
            await restore(world.repo, Admission(world.repo), CLOCK, "web", options)
            assert world.machine().memory == b"kept"
            with suppress(NotFound):
                await snapshot_rm(world.repo, "web", "saved")
            while left(world)[0]:
                await asyncio.sleep(0.01)
            with pytest.raises(NotFound, match="no saved state"):
                await restore(world.repo, Admission(world.repo), CLOCK, "web", options)

    play(scenario)


def test_what_was_set_while_it_was_saved_holds_when_it_runs_on(play: Play) -> None:
    asked = {"disk": {"total_ops": "300/s"}, "memory": {"balloon": "never", "reporting": True}}

    def set_meanwhile(record: InstanceRecord, _: object) -> InstanceRecord:
        fields = record.spec.model_dump(mode="json")
        fields |= {"qos": asked, "labels": {"owner": "anna"}, "restart_policy": "always"}
        fields["memory"]["size"] = "32MiB"
        return record.model_copy(update={"spec": InstanceSpec.model_validate(fields)})

    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            await save(world.repo, CLOCK, "web", timeout_s=10.0)
            await world.repo.change_instance("web", set_meanwhile)
            options = RestoreOptions(until="running", timeout_s=10.0)
            spec = (await restore(world.repo, Admission(world.repo), CLOCK, "web", options)).record.spec
            assert spec.qos.disk.total_ops == 300 and spec.qos.memory.balloon == "never"
            assert (spec.labels, spec.restart_policy) == ({"owner": "anna"}, "always")
            # what the saved machine is made of is as it was
            assert spec.memory.size == 16 * MiB and not spec.qos.memory.reporting

    play(scenario)


def test_a_save_that_fails_lets_it_run_on(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)

            def full(*args: object, **named: object) -> None:
                raise NoCapacity("No space left")

            monkeypatch.setattr(ramfile, "save", full)
            with pytest.raises(NoCapacity):
                await save(world.repo, CLOCK, "web", timeout_s=10.0)
            view = await world.repo.wait_for("web", lambda one: one.status.state is State.RUNNING, 5.0)
            assert view.record.wanted.power is Power.ON
            while world.machine().state.value != "running":  # it may be on the move, ahead of a fork
                await asyncio.sleep(0.001)
            while left(world)[0]:
                await asyncio.sleep(0.001)
            assert await world.repo.snapshots.of("web") == []

    play(scenario)


@pytest.mark.parametrize("point", ["stand_in", "freeze", "restore"])
def test_one_that_fails_leaves_nothing(play: Play, point: str) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            before, pid = top(world), world.machine().pid
            world.engine.fail[point] = EngineError("QEMU refused")
            with pytest.raises(EngineError, match="QEMU refused"):
                await taken(world, "a")
            del world.engine.fail[point]
            assert left(world) == ([], []) and await world.repo.snapshots.of("web") == []
            assert world.machine().pid == pid and top(world) == before
            await taken(world, "a")

    play(scenario)


def test_a_restore_that_cannot_be_done_ends_nothing(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            record = await taken(world, "a")
            world.machine().memory = b"precious"
            directory = world.paths.snapshot(record.id).directory
            os.truncate(directory / "ram", 4096)
            with pytest.raises(Failed, match="damaged"):
                await restored(world, "a")
            os.truncate(directory / "ram", 16 * MiB)
            (directory / "device-state").write_bytes(b"x")
            with pytest.raises(Failed, match="damaged"):
                await restored(world, "a", "copy")
            assert world.machine().memory == b"precious"
            # The failed order is not tried again with the next verb.
            view = await world.want("web", power=Power.PAUSED, revert=None)
            assert view.status.state is State.PAUSED and world.machine().memory == b"precious"
            assert [one.name for one in await world.repo.instances()] == ["web"]

    play(scenario)


def test_disks_are_as_before_when_it_does_not_start(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            await taken(world, "a")
            before = top(world)
            world.engine.fail["restore"] = EngineError("bad state")
            with pytest.raises(StartFailed, match="bad state"):
                await restored(world, "a")
            del world.engine.fail["restore"]
            assert top(world) == before and before.exists()
            assert (await world.repo.view("web")).status.state is State.STOPPED
            await restored(world, "a")

    play(scenario)


def test_half_a_snapshot_is_undone_by_the_next_daemon(play: Play) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            done = await taken(world, "a")
        half = done.model_copy(update={"name": "half", "id": "f" * 16, "state": SnapshotState.TAKING})
        await world.repo.snapshots.create(half)
        world.paths.snapshot(half.id).directory.mkdir()
        await world.repo.snapshots.change(
            done, lambda one: one.model_copy(update={"state": SnapshotState.REMOVING})
        )
        async with world.daemon():
            await world.repo.snapshots.settle_gone(half, 5.0)
            await world.repo.snapshots.settle_gone(done, 5.0)
            assert left(world)[0] == []
            assert (await world.repo.view("web")).status.state is State.RUNNING

    play(scenario)


def test_one_that_is_removed_while_it_is_written(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        async with world.daemon():
            await world.create(spec=DISK)
            writing = asyncio.Event()
            loop = asyncio.get_running_loop()

            def slow(*args: object, progress: Callable[[int], None], **named: object) -> None:
                loop.call_soon_threadsafe(writing.set)
                while True:
                    progress(1)

            monkeypatch.setattr(ramfile, "save", slow)
            work = asyncio.create_task(taken(world, "a"))
            await writing.wait()
            with pytest.raises(NameTaken):
                await taken(world, "a")
            await snapshot_rm(world.repo, "web", "a")
            with pytest.raises(InnkeeperError, match="removed"):
                await work
            assert left(world)[0] == [] and not list(world.paths.moments.iterdir())

    play(scenario)


class _Agent:
    """Counts; the connection is cut for the first thaw, as by a hand-over."""

    def __init__(self) -> None:
        self.frozen, self.thaws = False, 0

    async def fsfreeze_freeze(self) -> int:
        self.frozen = True
        return 1

    async def fsfreeze_thaw(self) -> int:
        self.thaws += 1
        if self.thaws == 1:
            raise Failed("the connection was lost")
        self.frozen = False
        return 1


def test_file_systems_are_thawed_whatever_happens() -> None:
    async def inside() -> None:
        agent = _Agent()
        running: Any = SimpleNamespace(uid="u", agent=agent, machine=SimpleNamespace(agent_open=True))
        with pytest.raises(EngineError):
            async with FileSystems(running, wanted=True) as file_systems:
                assert await file_systems.freeze() and agent.frozen
                raise EngineError("QEMU refused")
        assert not agent.frozen and agent.thaws == 2
        async with FileSystems(running, wanted=False) as file_systems:
            assert not await file_systems.freeze()
        assert agent.thaws == 2

    run(inside())


def _record(**labels: Any) -> SnapshotRecord:
    wanted = {"qemu": "7.2.4", "machine": "pc-q35-7.2", "accelerator": "tcg", **labels}
    return SnapshotRecord.model_validate(
        {
            "name": "a", "id": "0" * 16, "instance": "web", "uid": "u", "host": "h", "created_at": 0.0,
            "kind": "memory", "labels": wanted, "spec": {"image": "tiny"},
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({}, ""),
        ({"qemu": "7.0.0"}, ""),
        ({"qemu": "8.0.0"}, "older 7.2.0"),
        ({"machine": "pc-q35-9.0"}, "machine type"),
        ({"accelerator": "kvm"}, "under KVM"),
    ],
)
def test_what_a_host_must_have(labels: dict[str, str], words: str) -> None:
    def check() -> None:
        check_restorable(_record(**labels), qemu_version="7.2.0", machine_types=["pc-q35-7.2"], kvm=False)

    if words:
        with pytest.raises(Unsupported, match=words):
            check()
    else:
        check()


def test_cpu_features_that_are_missing() -> None:
    record = _record(accelerator="kvm", cpu_flags=("sse", "avx512"))
    host: dict[str, Any] = {"qemu_version": "7.2.0", "machine_types": (), "kvm": True}
    check_restorable(record, **host, cpu_flags=("sse", "avx512", "more"))
    with pytest.raises(Unsupported, match="avx512"):
        check_restorable(record, **host, cpu_flags=("sse",))
    labels = SnapshotLabels(accelerator="kvm", machine="x")
    check_restorable(record.model_copy(update={"kind": "disks", "labels": labels}), **host)


def test_a_moment_that_nobody_wants_any_more() -> None:
    moments = Moments()
    moments.hold("t", "snapshot", quiesce=True)
    assert moments.wants_quiet("t")
    moments.release("t", "snapshot")
    moments.taken_for("t")
    assert moments.tokens() == set()


# -- the RAM file ----------------------------------------------------------------------------------


def _ram(size: int, **pieces: bytes) -> int:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, size)
    for offset, data in pieces.items():
        os.pwrite(fd, data, int(offset[1:]))
    return fd


@pytest.mark.parametrize("compress", [False, True])
def test_ram_to_disk_and_back(tmp_path: Path, compress: bool) -> None:
    size = 64 * MiB
    zeros = {f"_{20 * MiB}": bytes(2 * MiB)}
    source = _ram(
        size, _0=b"begin", **zeros, **{f"_{30 * MiB + 5}": os.urandom(100_000), f"_{size - 3}": b"end"}
    )
    seen: list[int] = []
    ramfile.save(source, tmp_path / "ram", compress=compress, progress=seen.append)
    assert seen[-1] == ramfile.data_bytes(source)
    assert (tmp_path / "ram").stat().st_blocks * 512 < 1 * MiB, "holes and zeros take nothing"
    target = _ram(size)
    ramfile.load(tmp_path / "ram", target, compressed=compress)
    assert os.pread(target, size, 0) == os.pread(source, size, 0)
    assert os.fstat(target).st_blocks * 512 < 2 * MiB, "and none in memory"
    os.truncate(tmp_path / "ram", (tmp_path / "ram").stat().st_size - 10)
    with pytest.raises(Failed, match=r"truncated|damaged"):
        ramfile.load(tmp_path / "ram", _ram(size), compressed=compress)
