"""Go back to a snapshot, in place; and start a new VM from one.

Disks become new, empty layers over those of the snapshot. Memory is read into a memory file of the VM's
own while what runs still runs; only then that is ended. So a snapshot that cannot be taken up costs
nothing, and a VM that has been restored can be forked like any other.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path

from innkeeper.agent import chains, layers, saved
from innkeeper.agent.context import Context
from innkeeper.agent.lookup import plan_of
from innkeeper.agent.moments import Taken
from innkeeper.agent.ops import power
from innkeeper.agent.ops.launch import QEMU_OVERHEAD_BYTES, Source, admit, launch
from innkeeper.drivers.storage.files import require_free
from innkeeper.drivers.storage.qcow2 import virtual_size, write_empty
from innkeeper.engine.base import LaunchPlan, Layer
from innkeeper.errors import Failed
from innkeeper.spec.instance import ForkOrigin, InstanceRecord, Revert, State
from innkeeper.spec.overcommit import translated_bytes
from innkeeper.spec.snapshot import SnapshotRecord, SnapshotState

Chains = dict[str, tuple[Layer, ...]]


async def revert(ctx: Context, record: InstanceRecord) -> None:
    """Carry out `wanted.revert`. Whatever fails before the run is ended leaves it running; what fails
    after that leaves the disks as they were."""
    order = record.wanted.revert
    assert order is not None
    begun = time.perf_counter()
    ctx.checkpoint("revert.begun")
    running = ctx.running.get(record.uid)
    if running and running.plan and ctx.statuses[record.uid].revert_begun == order.token:
        _drop_others(ctx, record)  # an earlier daemon was killed just after it had started it
        await _done(ctx, record, order)
        return
    async with ctx.snapshot_lock(order.snapshot):
        snapshot = await find(ctx, record.name, order.snapshot)
        saved.check(ctx, snapshot)
        require_free(ctx.paths.instances, 0)
        async with AsyncExitStack() as loaded, AsyncExitStack() as undo:
            source = await _loaded(ctx, record, snapshot, loaded) if order.memory else None
            ctx.checkpoint("revert.loaded")
            await _end_run(ctx, record)
            await ctx.publish(record, durable=True, revert_begun=order.token)
            _switch_disks(ctx, record, snapshot, order.token, undo)
            ctx.checkpoint("revert.switched")
            if order.start:
                await _start(ctx, record, snapshot, source, begun)
            undo.pop_all()
            chains.settle(ctx.paths.instance(record.uid))
        ctx.checkpoint("revert.started")
        _drop_others(ctx, record)
        await _done(ctx, record, order)
    ctx.checkpoint("revert.done")


async def find(ctx: Context, instance: str, ident: str) -> SnapshotRecord:
    snapshot = await ctx.repo.snapshots.by_id(instance, ident)
    if snapshot is None or snapshot.state is not SnapshotState.READY:
        raise Failed(f"The snapshot of {instance} is gone", hint=f"see inn snapshot list {instance}")
    return snapshot


async def _loaded(
    ctx: Context, record: InstanceRecord, snapshot: SnapshotRecord, stack: AsyncExitStack
) -> Source:
    """The memory; all of it where a run is to be ended for it. What runs is ended first only where there
    is no room for both."""
    needed = snapshot.ram_bytes + QEMU_OVERHEAD_BYTES
    if record.uid not in ctx.running:
        admit(ctx, record, snapshot.ram_bytes)
    elif ctx.host.memory_available_bytes() < needed:
        await _end_run(ctx, record)
    source = await stack.enter_async_context(saved.loading(ctx, snapshot))
    if record.uid in ctx.running and source.ready is not None:
        await source.ready()
    return source


async def _end_run(ctx: Context, record: InstanceRecord) -> None:
    if record.uid in ctx.running:
        await ctx.publish(record, ready=False, agent=False, addresses=())
        await power.kill(ctx, record)


def _switch_disks(
    ctx: Context,
    record: InstanceRecord,
    snapshot: SnapshotRecord,
    token: str,
    undo: ExitStack | AsyncExitStack,
) -> None:
    files = ctx.paths.instance(record.uid)
    disks = {}
    for name, chain in saved.frozen_disks(ctx, snapshot).items():
        path = files.directory / f"{name}.{token}.qcow2"
        path.unlink(missing_ok=True)  # of an attempt that was killed
        disks[name] = own_layer(ctx.paths.layers, path, chain)
    chains.change(files, disks, undo)
    source = ctx.paths.snapshot(snapshot.id).uefi_vars
    if source.exists():
        before_vars = files.uefi_vars.read_bytes() if files.uefi_vars.exists() else b""
        undo.callback(files.uefi_vars.write_bytes, before_vars)
        draft = files.uefi_vars.with_suffix(".tmp")
        shutil.copyfile(source, draft)
        os.replace(draft, files.uefi_vars)


def own_layer(layers: Path, top: Path, chain: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """An empty layer `top` over what was frozen; what is only read is shared as it is."""
    if layers not in chain[0].path.parents:
        return chain
    write_empty(top, virtual_size(chain[0].path), backing=chain[0].path, backing_format="qcow2")
    return (Layer(top, "qcow2"), *chain)


async def _start(
    ctx: Context, record: InstanceRecord, snapshot: SnapshotRecord, source: Source | None, begun: float
) -> None:
    await ctx.publish(record, state=State.STARTING, panicked=False, note="", pid=0)
    if source is None:
        admit(ctx, record, record.spec.memory.size)
        await launch(ctx, record, plan_of(ctx, record), begun)
        return
    plan = _plan(ctx, record, saved.plan_of_moment(ctx, snapshot))
    await launch(ctx, record, plan, begun, source)


def _plan(ctx: Context, record: InstanceRecord, frozen: LaunchPlan) -> LaunchPlan:
    """The plan of the moment on what lies where today. Devices stay, or the state would not fit."""
    files = ctx.paths.instance(record.uid)
    disks = chains.read(files)
    return replace(
        frozen,
        binary=ctx.host.qemu(frozen.architecture).binary,
        name=record.name,
        epoch=record.wanted.epoch,
        disks=tuple(replace(disk, chain=disks[disk.name]) for disk in frozen.disks),
        firmware=replace(frozen.firmware, variables=files.uefi_vars) if frozen.firmware else None,
        translated_bytes=translated_bytes(frozen.accelerator, frozen.memory_bytes),
        paused=False,
        ram_private=False,
        console_log=files.console_log,
        qemu_log=files.qemu_log,
    )


async def _done(ctx: Context, record: InstanceRecord, order: Revert) -> None:
    """From here on it is never repeated, so this is synced."""
    await ctx.publish(record, durable=True, reverted=order.token, snapshot=order.name)


def _drop_others(ctx: Context, record: InstanceRecord) -> None:
    """Layers of before: of this instance alone, and nobody's now."""
    files = ctx.paths.instance(record.uid)
    used = {layer.path for chain in chains.read(files).values() for layer in chain}
    for path in files.directory.glob("*.qcow2"):
        if path not in used:
            path.unlink(missing_ok=True)
    layers.sweep(ctx)


async def durable_moment(ctx: Context, origin: ForkOrigin) -> Taken:
    """A snapshot as the moment a new VM is made from; its memory is loaded when it starts."""
    snapshot = await find(ctx, origin.parent, origin.moment)
    saved.check(ctx, snapshot)
    plan = saved.plan_of_moment(ctx, snapshot) if snapshot.kind == "memory" else None
    disks = saved.frozen_disks(ctx, snapshot)
    return Taken(plan, None, disks, ctx.paths.snapshot(snapshot.id).directory)


def start_plan(ctx: Context, plan: LaunchPlan) -> LaunchPlan:
    """A new VM from a snapshot has RAM of its own, and the QEMU of today."""
    return replace(plan, ram_private=False, binary=ctx.host.qemu(plan.architecture).binary)
