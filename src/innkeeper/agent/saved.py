"""The files of a snapshot: written from a moment, checked, and read back as one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

from innkeeper.agent import chains, sysfs
from innkeeper.agent.context import Context, Running
from innkeeper.agent.moments import Taken
from innkeeper.agent.ops.launch import Source
from innkeeper.drivers.storage import ramfile
from innkeeper.engine import plan_file
from innkeeper.engine.base import LaunchPlan, Layer, Moment
from innkeeper.engine.memory import MAIN_RAM, Ram
from innkeeper.engine.qemu import ram
from innkeeper.errors import Failed
from innkeeper.paths import SnapshotFiles
from innkeeper.spec.snapshot import FileMark, SnapshotLabels, SnapshotRecord, check_restorable


def write_small(files: SnapshotFiles, taken: Taken, *, memory: bool) -> None:
    """Everything but RAM, synced."""
    chains.write(files, taken.disks)
    if (taken.directory / "vars.fd").exists():
        shutil.copyfile(taken.directory / "vars.fd", files.uefi_vars)
    if memory:
        assert taken.plan is not None and taken.machine is not None
        plan_file.save(files, taken.plan)
        shutil.copyfile(taken.machine.state, files.device_state)
    for path in (files.chains, files.uefi_vars, files.plan, files.device_state):
        if path.exists():
            _sync(path)


def marks(files: SnapshotFiles) -> dict[str, FileMark]:
    """Of all files, once they are written; the directory is synced, too."""
    found = {path.name: _mark(path) for path in sorted(files.directory.iterdir())}
    _sync(files.directory)
    _sync(files.directory.parent)
    return found


def size_on_disk(files: SnapshotFiles) -> int:
    return sum(path.stat().st_blocks * 512 for path in files.directory.iterdir())


def labels_of(running: Running | None) -> SnapshotLabels:
    """What restoring must compare; of a VM that does not run there is nothing."""
    if running is None or running.plan is None:
        return SnapshotLabels()
    kvm = running.machine.accelerator == "kvm"
    return SnapshotLabels(
        qemu=running.machine.version,
        machine=running.plan.machine,
        accelerator=running.machine.accelerator,
        cpu_model=running.plan.cpu_model,
        host_cpu=sysfs.cpu_model(sysfs.HOST_ROOT),
        cpu_flags=sysfs.cpu_flags() if kvm else (),
    )


def check(ctx: Context, snapshot: SnapshotRecord) -> None:
    """Raises Unsupported when this host cannot take it up, Failed when a file is missing or damaged."""
    files = ctx.paths.snapshot(snapshot.id)
    if snapshot.kind == "memory":
        qemu = ctx.host.qemu(plan_of_moment(ctx, snapshot).architecture)
        check_restorable(
            snapshot,
            qemu_version=qemu.version,
            machine_types=(),  # the verb knows them all; here only aliases are known
            kvm=qemu.kvm == "hardware",
            cpu_flags=sysfs.cpu_flags(),
        )
    for name, mark in snapshot.files.items():
        path = files.directory / name
        if not path.exists():
            raise Failed(f"{path} of snapshot {snapshot.name} is missing", hint=_BACKUP)
        if path.stat().st_size != mark.size_bytes:
            raise Failed(
                f"{path} of snapshot {snapshot.name} is damaged: {path.stat().st_size} bytes instead of "
                f"{mark.size_bytes}",
                hint=_BACKUP,
            )
        if mark.sha256 and _mark(path) != mark:
            raise Failed(f"{path} of snapshot {snapshot.name} is damaged: its checksum differs", hint=_BACKUP)
    for layer in {layer.path for chain in chains.read(files).values() for layer in chain}:
        if not layer.exists():
            raise Failed(f"{layer}, a disk layer of snapshot {snapshot.name}, is missing", hint=_BACKUP)


_BACKUP = "restore it from a backup, or remove the snapshot"


def frozen_disks(ctx: Context, snapshot: SnapshotRecord) -> dict[str, tuple[Layer, ...]]:
    return chains.read(ctx.paths.snapshot(snapshot.id))


def plan_of_moment(ctx: Context, snapshot: SnapshotRecord) -> LaunchPlan:
    plan = plan_file.load(ctx.paths.snapshot(snapshot.id))
    if plan is None:
        raise Failed(f"The plan of snapshot {snapshot.name} is not one this version understands")
    return plan


@contextlib.asynccontextmanager
async def loading(ctx: Context, snapshot: SnapshotRecord) -> AsyncIterator[Source]:
    """What to start from. Its RAM is a memory file of its own, so whoever starts from it can be forked at
    once; it is being read while QEMU starts, and there when the source is ready."""
    files = ctx.paths.snapshot(snapshot.id)
    plan = plan_of_moment(ctx, snapshot)
    memory = ram.create(plan)
    reading = asyncio.ensure_future(asyncio.to_thread(_load, files, memory, compressed=snapshot.compress))

    async def ready() -> None:
        await asyncio.shield(reading)

    try:
        if plan.memory.prealloc or plan.memory.page_bytes:
            # QEMU touches each page then, which on older kernels (before 5.14) is to read and write it back.
            await asyncio.shield(reading)
        yield Source(Moment(memory, files.device_state), ready)
    finally:
        await asyncio.wait([reading])  # it cannot be cut, and has the descriptor
        if not reading.cancelled():
            reading.exception()
        memory.close()


def ram_files(
    files: SnapshotFiles, pieces: Mapping[str, int], *, compressed: bool
) -> Iterator[tuple[int, Path]]:
    """Each piece of RAM with its file."""
    for name, fd in pieces.items():
        yield fd, files.ram("" if name == MAIN_RAM else name, compressed=compressed)


def _load(files: SnapshotFiles, memory: Ram, *, compressed: bool) -> None:
    for fd, path in ram_files(files, memory.parts, compressed=compressed):
        ramfile.load(path, fd, compressed=compressed)


def _mark(path: Path) -> FileMark:
    if path.name.startswith("ram"):
        return FileMark(size_bytes=path.stat().st_size)
    data = path.read_bytes()
    return FileMark(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
