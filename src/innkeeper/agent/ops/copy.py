"""Make and start a fork: layers of its own over the moment's, RAM and devices as they were then."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from innkeeper.agent import chains, saved, templates
from innkeeper.agent.context import Context
from innkeeper.agent.launchplan import SEED_DISK, forwards_of
from innkeeper.agent.lookup import merging
from innkeeper.agent.moments import Taken
from innkeeper.agent.ops.launch import Source, admit, launch
from innkeeper.agent.ops.restore import durable_moment, find, own_layer, start_plan
from innkeeper.engine.base import DiskPlan, LaunchPlan, Layer, NicPlan
from innkeeper.engine.qemu.argv import mac_address
from innkeeper.errors import Failed
from innkeeper.guest.cloudinit import seed_iso
from innkeeper.spec.instance import ForkOrigin, InstanceRecord, Network, State, private_bytes
from innkeeper.spec.overcommit import translated_bytes

# This many copies start their QEMU beside the parent's stand-in, before the moment: one per core, less the
# stand-in's. More would make the parent stand still for longer.
STARTED_AHEAD: Final = max(1, (os.cpu_count() or 1) - 1)


async def create_copy(ctx: Context, record: InstanceRecord, origin: ForkOrigin) -> None:
    """Like `create`, from a moment of the parent instead of from an image."""
    ctx.checkpoint("copy.begun")
    if record.uid in ctx.spares.waiting:
        _write_seed(ctx, record)  # its other files are there, made for no name in particular
    else:
        async with _moment(ctx, origin) as taken:
            make_files(ctx, record, taken)
    await ctx.publish(record, durable=True, created=True, state=State.STOPPED)
    ctx.checkpoint("copy.made")


@contextlib.asynccontextmanager
async def _moment(ctx: Context, origin: ForkOrigin) -> AsyncIterator[Taken]:
    """What a copy is made from, while it is."""
    if origin.durable:
        async with ctx.snapshot_lock(origin.moment):
            yield await durable_moment(ctx, origin)
    elif origin.template:
        with templates.borrowed(ctx, origin) as taken:
            yield taken
    else:
        yield await moment_of(ctx, origin)


def make_files(ctx: Context, record: InstanceRecord, taken: Taken) -> None:
    """Its directory, with layers of its own over those of the moment; whole or not at all."""
    files = ctx.paths.instance(record.uid)
    with ExitStack() as undo:
        shutil.rmtree(files.directory, ignore_errors=True)
        files.directory.mkdir(parents=True, mode=0o700)
        undo.callback(shutil.rmtree, files.directory, ignore_errors=True)
        disks = {
            name: own_layer(ctx.paths.layers, files.disk(name), chain) for name, chain in taken.disks.items()
        }
        if SEED_DISK in disks:
            disks[SEED_DISK] = (Layer(files.seed, "raw"),)
        if (taken.directory / "vars.fd").exists():
            shutil.copyfile(taken.directory / "vars.fd", files.uefi_vars)
        chains.write(files, disks)
        _write_seed(ctx, record)
        undo.pop_all()


def _write_seed(ctx: Context, record: InstanceRecord) -> None:
    """A new file each time: a QEMU that has the one before goes on with that."""
    files = ctx.paths.instance(record.uid)
    if SEED_DISK in chains.read(files):
        seed = seed_iso(hostname=record.name, instance_id=record.uid, user_data=record.spec.user_data)
        draft = files.seed.with_suffix(".tmp")
        draft.write_bytes(seed)
        os.replace(draft, files.seed)


async def start_copy(ctx: Context, record: InstanceRecord, origin: ForkOrigin, begun: float) -> None:
    """Start a fork from its moment: it runs on from there, and learns who it is when its agent answers."""
    if origin.durable:
        await _start_from_snapshot(ctx, record, origin, begun)
        return
    if origin.template:
        await _start_from_template(ctx, record, origin, begun)
        return
    taken = await moment_of(ctx, origin)
    if taken.plan is None or taken.machine is None:
        raise Failed(f"{origin.parent} did not run any more when it was to be forked", hint="start it first")
    admit(ctx, record, private_bytes(record.spec.memory.size))
    plan = plan_of_copy(ctx, record, taken.plan)
    if origin.index >= STARTED_AHEAD:
        await taken.wait_ready()
    await launch(ctx, record, plan, begun, Source(taken.machine, taken.wait_ready))
    ctx.moments.release(origin.moment, record.uid)
    ctx.checkpoint("copy.started")


async def _start_from_template(
    ctx: Context, record: InstanceRecord, origin: ForkOrigin, begun: float
) -> None:
    """Nothing happens to the template: its moment is there already. Perhaps a spare is, too."""
    admit(ctx, record, private_bytes(record.spec.memory.size))
    with templates.borrowed(ctx, origin) as taken:
        assert taken.plan is not None and taken.machine is not None
        plan = plan_of_copy(ctx, record, taken.plan)
        await launch(ctx, record, plan, begun, Source(taken.machine, waiting=ctx.spares.take(record.uid)))
    ctx.checkpoint("copy.started")


async def _start_from_snapshot(
    ctx: Context, record: InstanceRecord, origin: ForkOrigin, begun: float
) -> None:
    snapshot = await find(ctx, origin.parent, origin.moment)
    async with ctx.snapshot_lock(snapshot.id):
        saved.check(ctx, snapshot)
        admit(ctx, record, snapshot.ram_bytes)
        frozen = saved.plan_of_moment(ctx, snapshot)
        async with saved.loading(ctx, snapshot) as source:
            plan = start_plan(ctx, plan_of_copy(ctx, record, frozen))
            await launch(ctx, record, plan, begun, source)
    # Synced: after a power cut it must not wake up once more, on disks that it has written to.
    await ctx.publish(record, durable=True, reverted=origin.moment)
    ctx.checkpoint("copy.started")


async def moment_of(ctx: Context, origin: ForkOrigin) -> Taken:
    parent = ctx.records.get(origin.parent)
    known = origin.moment in ctx.moments.tokens()
    if not known and (parent is None or parent.uid != origin.parent_uid or parent.wanted.removed):
        raise Failed(f"{origin.parent} is gone; there is nothing to fork", hint="see inn list")
    taken = await ctx.moments.of(origin.parent_uid, origin.moment)
    if taken.failure is not None:
        raise taken.failure
    return taken


def plan_of_copy(ctx: Context, record: InstanceRecord, parent: LaunchPlan) -> LaunchPlan:
    """The parent's plan with what is this fork's own. Devices stay, or the state would not fit."""
    files = ctx.paths.instance(record.uid)
    disks = chains.read(files)
    firmware = replace(parent.firmware, variables=files.uefi_vars) if parent.firmware else None
    asked = dict(enumerate(record.spec.networks))
    nics = tuple(
        _own_nic(nic, mac_address(record.uid, index), asked.get(index))
        for index, nic in enumerate(parent.nics)
    )
    return replace(
        parent,
        uid=record.uid,
        name=record.name,
        epoch=record.wanted.epoch,
        memory=merging(ctx, record, parent.memory),
        disks=tuple(_disk(disk, disks) for disk in parent.disks),
        nics=nics,
        firmware=firmware,
        inherited_macs=(*(parent.inherited_macs or ()), *(nic.mac for nic in parent.nics)),
        translated_bytes=translated_bytes(parent.accelerator, parent.memory_bytes),
        vnc="socket" if parent.vnc else "",
        paused=False,
        console_log=files.console_log,
        qemu_log=files.qemu_log,
    )


def _own_nic(nic: NicPlan, mac: str, asked: Network | None) -> NicPlan:
    """What leads to it from outside is its own matter.

    An e1000e has its address in its PCI configuration space (Device Serial Number), which must be that of
    the state; so the guest alone is told another one."""
    built = (nic.built_mac or nic.mac) if nic.model == "e1000e" else ""
    forwards = forwards_of(asked) if asked else ()
    return replace(nic, mac=mac, built_mac=built, forwards=forwards)


def _disk(disk: DiskPlan, disks: dict[str, tuple[Layer, ...]]) -> DiskPlan:
    return replace(disk, chain=disks[disk.name])
