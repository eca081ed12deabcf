"""Make an instance's directory and disks. Whole or not at all: begun anew after a crash."""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack
from pathlib import Path

from innkeeper.agent import chains
from innkeeper.agent.context import Context
from innkeeper.agent.cpus import check_cpu
from innkeeper.agent.launchplan import SEED_DISK
from innkeeper.agent.lookup import image_of
from innkeeper.agent.ops.clone import create_clone
from innkeeper.agent.ops.copy import create_copy
from innkeeper.drivers import firmware
from innkeeper.drivers.storage import files as storage
from innkeeper.engine.base import Layer
from innkeeper.errors import NotFound, Unsupported
from innkeeper.guest.cloudinit import seed_iso
from innkeeper.images.imagedir import ImageManifest
from innkeeper.images.inspect import inspect_disk, is_blank
from innkeeper.paths import InstanceFiles
from innkeeper.spec.instance import Disk, InstanceRecord, State


async def create(ctx: Context, record: InstanceRecord) -> None:
    await ctx.publish(record, state=State.CREATING)
    if record.fork is not None:
        make = create_clone if record.fork.full else create_copy
        await make(ctx, record, record.fork)
        return
    ctx.checkpoint("create.begun")
    await check_cpu(ctx, record)
    files = ctx.paths.instance(record.uid)
    async with AsyncExitStack() as undo:
        shutil.rmtree(files.directory, ignore_errors=True)  # what a killed attempt left
        files.directory.mkdir(parents=True, mode=0o700)
        undo.callback(shutil.rmtree, files.directory, ignore_errors=True)
        ctx.checkpoint("create.directory")
        image = image_of(ctx, record)
        disks: dict[str, tuple[Layer, ...]] = {}
        if image and image.boot == "disk":
            disks["root"] = _root_over_image(ctx, record, image, files)
        for disk in record.spec.disks:
            if disk.name not in disks:
                disks[disk.name] = (await _make_disk(ctx, disk, files),)
            ctx.checkpoint("create.disk")
        if record.spec.machine.firmware == "uefi":
            shutil.copyfile(firmware.find_uefi().variables_template, files.uefi_vars)
        if record.spec.user_data or (image and image.kind == "debian"):
            seed = seed_iso(hostname=record.name, instance_id=record.uid, user_data=record.spec.user_data)
            files.seed.write_bytes(seed)
            disks[SEED_DISK] = (Layer(files.seed, "raw"),)
        chains.write(files, disks)
        await ctx.publish(record, durable=True, created=True, state=State.STOPPED)
        undo.pop_all()
    ctx.checkpoint("create.done")


def _root_over_image(
    ctx: Context, record: InstanceRecord, image: ImageManifest, files: InstanceFiles
) -> tuple[Layer, ...]:
    """The instance's own layer over the image's immutable disk; the spec may make it larger."""
    base = ctx.paths.images / image.id / "disk.qcow2"
    size = next((disk.size for disk in record.spec.disks if disk.name == "root"), None) or 0
    storage.create_overlay(files.disk("root"), base, size)
    ctx.checkpoint("create.disk")
    return Layer(files.disk("root"), "qcow2"), Layer(base, "qcow2")


async def _make_disk(ctx: Context, disk: Disk, files: InstanceFiles) -> Layer:
    if disk.path:
        return await _in_place(ctx, disk, Path(disk.path))
    path = files.disk(disk.name)
    if disk.copy_of:
        info = await inspect_disk(Path(disk.copy_of), ctx.runner)
        await storage.copy(ctx.runner, Path(disk.copy_of), info.format, path)
        if disk.size and disk.size > info.virtual_size_bytes:
            await storage.grow(ctx.runner, path, disk.size)
    else:
        storage.create_blank(path, disk.size or 0)
    return Layer(path, "qcow2")


async def _in_place(ctx: Context, disk: Disk, path: Path) -> Layer:
    """The format is decided now, once: later its content is the guest's."""
    if not path.exists():
        raise NotFound(f"No such file: {path}", hint="give the path as it is on the daemon's host")
    if disk.media == "cdrom" or path.is_block_device() or is_blank(path):
        return Layer(path, "raw")
    info = await inspect_disk(path, ctx.runner)  # refuses what is no image, or hostile
    if info.format not in ("raw", "qcow2"):
        raise Unsupported(
            f"{path} is {info.format}: in place only raw and qcow2 can be used",
            hint=f"have it copied: inn run {path}",
        )
    return Layer(path, info.format)
