"""What a daemon does first: find the VMs an earlier one left running, and note those that ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Mapping
from typing import TypeVar

from innkeeper.agent import chains, devices, layers, templates
from innkeeper.agent.context import Context, Running
from innkeeper.agent.lookup import expects_agent, image_of
from innkeeper.agent.ops.disklimits import fit_disks
from innkeeper.agent.qos.memory import why_killed
from innkeeper.agent.snapshots import sweep_snapshots
from innkeeper.engine import plan_file
from innkeeper.engine.base import LaunchPlan, Machine, RunState
from innkeeper.errors import Failed, InnkeeperError, StoreCorrupt
from innkeeper.guest.agent import GuestAgent
from innkeeper.paths import RuntimeFiles
from innkeeper.spec.base import Model
from innkeeper.spec.instance import Ended, Failure, InstanceRecord, InstanceStatus, Power, State
from innkeeper.spec.memory import MemoryNow
from innkeeper.store import keys
from innkeeper.store.codec import decode
from innkeeper.store.kv import KeyValue
from innkeeper.store.view import StatusRecord

log = logging.getLogger("innkeeper.agent")
M = TypeVar("M", bound=Model)

_ALIVE = {State.RUNNING, State.PAUSED, State.STOPPING, State.HUNG}


async def recover(ctx: Context) -> tuple[list[InstanceRecord], int]:
    """Fill `ctx.statuses` and `ctx.running`; the records and the revision they are of."""
    listing = await ctx.repo.store.list(keys.INSTANCES)
    records = [record for kv in listing.items if (record := _readable(InstanceRecord, kv))]
    by_name = {record.name: record for record in records}
    ctx.records.update(by_name)
    for kv in (await ctx.repo.store.list(keys.STATUS)).items:
        status = _readable(StatusRecord, kv)
        record = by_name.get(keys.name_of(kv.key))
        if record is not None and status is not None and record.uid == status.uid:
            fields = {name: getattr(status, name) for name in InstanceStatus.model_fields}
            ctx.statuses[record.uid] = InstanceStatus.model_construct(**fields)
    alive = ctx.engine.find_running()
    await asyncio.gather(*(_recover_one(ctx, record, alive.get(record.uid, [])) for record in records))
    _sweep(ctx, records, alive)
    ctx.cgroups.sweep(ctx.running)
    await sweep_snapshots(ctx)
    for record in records:
        layers.sweep_instance(ctx, ctx.paths.instance(record.uid))
    return records, listing.revision


def _readable(kind: type[M], kv: KeyValue) -> M | None:
    """One damaged value must not keep the daemon from the other instances."""
    try:
        return decode(kind, kv)
    except StoreCorrupt as error:
        log.error("%s", error)
        return None


async def _recover_one(ctx: Context, record: InstanceRecord, pids: list[int]) -> None:
    status = ctx.statuses.get(record.uid, InstanceStatus())
    cut = ctx.engine.listens(ctx.paths.next_runtime(record.uid))
    machine = await _adopted(ctx, record, pids, cut) if pids else None
    if machine is not None and cut and record.wanted.power is Power.ON:
        await _run_on(machine)
    token = templates.token_of(ctx.paths.runtime(record.uid))
    state = await _state_of(machine, template=token != "") if machine else None
    if machine is None or state is None:
        if status.state in _ALIVE:
            await _note_unseen_end(ctx, record, status)
        if _half_forked(record, status):
            await _give_up(ctx, record, status)
        return
    files = ctx.paths.runtime(record.uid)
    plan = plan_file.load(files)
    if plan is not None:
        _name_open_files(ctx, record, plan)
    console_log = ctx.paths.instance(record.uid).console_log
    offset = console_log.stat().st_size if console_log.exists() else 0
    ctx.running[record.uid] = Running(
        machine, record.uid, GuestAgent(files.agent), plan, console_offset=offset, balloon_asked=True
    )
    with contextlib.suppress(InnkeeperError):  # its status says what is not in force
        await asyncio.to_thread(ctx.cgroups.adopt, record.uid, machine.pids)
    await ctx.publish(
        record,
        state=state,
        epoch=machine.epoch,
        accelerator=machine.accelerator,
        pid=machine.pid,
        started_at=machine.started_at,
        qemu=machine.version or status.qemu,
        ready=status.ready or not _waits_for_agent(ctx, record),
        template=token if state is State.PAUSED else "",
        spares=0,
    )
    if state is not State.HUNG:
        with contextlib.suppress(InnkeeperError):  # asked again when it is to be changed or forked
            await devices.note(ctx, record, ctx.running[record.uid])
            await fit_disks(ctx, record, ctx.running[record.uid])


async def _run_on(machine: Machine) -> None:
    """A hand-over that was cut left it halted. Done before anybody is served: nobody paused it."""
    with contextlib.suppress(InnkeeperError):  # it shows as what it is
        if await machine.run_state() is RunState.PAUSED:
            await machine.resume()


async def _adopted(ctx: Context, record: InstanceRecord, pids: list[int], cut: bool) -> Machine | None:
    """The process that is the VM, its runtime directory at its place. A hand-over that was `cut` leaves a
    second one, or one whose directory has not been renamed yet."""
    files, next_files = ctx.paths.runtime(record.uid), ctx.paths.next_runtime(record.uid)
    stand_in = None
    if cut:
        if len(pids) > 1 and templates.token_of(next_files):
            # It was about to be a template; the old process has nothing that the new one lacks.
            await ctx.engine.destroy_stray(pids.pop(0))
        if len(pids) > 1:
            stand_in = pids[1], next_files
        else:
            _take_place(next_files, files)
    try:
        machine = await ctx.engine.adopt(record.uid, pids[0], files, stand_in)
    except InnkeeperError as error:
        # Its runtime directory is gone: it cannot be talked to any more, now or later.
        log.error("cannot adopt %s (pid %d): %s; ending it", record.name, pids[0], error)
        await ctx.engine.destroy_stray(pids[0])
        return None
    if stand_in is not None:
        took_over = machine.pid == stand_in[0]
        log.info("%s: a fork was cut; its %s QEMU is kept", record.name, "new" if took_over else "old")
        if took_over:
            _take_place(next_files, files)
        else:
            shutil.rmtree(next_files.directory, ignore_errors=True)
    return machine


def _take_place(new: RuntimeFiles, old: RuntimeFiles) -> None:
    shutil.rmtree(old.directory, ignore_errors=True)
    new.directory.rename(old.directory)


async def _state_of(machine: Machine, *, template: bool) -> State | None:
    """None: it waits for the state of another VM, which will not come any more; it has been ended. A
    `template` waits for its own, for good."""
    try:
        state = await machine.run_state()
    except InnkeeperError:
        return State.HUNG
    if state is RunState.INCOMING and not template:
        await machine.kill()
        await machine.detach()
        return None
    return State.RUNNING if state is RunState.RUNNING else State.PAUSED


def _half_forked(record: InstanceRecord, status: InstanceStatus) -> bool:
    """A fork that needs its moment, which has gone with the daemon that took it."""
    if record.fork is None or record.fork.durable or record.fork.template or record.wanted.removed:
        return False
    return not status.created or (record.fork.live and status.epoch == 0 and record.wanted.epoch == 1)


async def _give_up(ctx: Context, record: InstanceRecord, status: InstanceStatus) -> None:
    said = Failed("The daemon ended in the middle of the fork", hint="fork it again").to_dict()
    await ctx.publish(
        record,
        durable=True,
        state=State.STOPPED if status.created else State.PENDING,
        failure=Failure(generation=record.wanted.generation, **said),
    )


def _name_open_files(ctx: Context, record: InstanceRecord, plan: LaunchPlan) -> None:
    """The disks are what the running QEMU has open: a fork that was cut may have noted what was to be."""
    files = ctx.paths.instance(record.uid)
    try:
        noted = chains.read(files)
    except Failed as error:
        log.error("%s", error)
        return
    is_open = {disk.name: disk.chain for disk in plan.disks if disk.name in noted}
    if noted | is_open != noted:
        log.info("%s: its disks are noted as they are open", record.name)
        chains.write(files, noted | is_open)


def _waits_for_agent(ctx: Context, record: InstanceRecord) -> bool:
    try:
        return expects_agent(record, image_of(ctx, record))
    except InnkeeperError:
        return False


async def _note_unseen_end(ctx: Context, record: InstanceRecord, status: InstanceStatus) -> None:
    if status.boot_id and status.boot_id != ctx.host.boot_id:
        reason, detail = "host-rebooted", "the host was restarted while it ran"
    elif record.wanted.removed or record.wanted.power is Power.OFF:
        reason, detail = "stopped", "while no daemon ran"
    elif oom := why_killed(ctx.cgroups.group_of(record.uid)):
        reason, detail = "out-of-memory", oom
    else:
        reason, detail = "ended-unseen", "it ended while no daemon ran"
    await ctx.publish(
        record,
        durable=True,
        state=State.STOPPED,
        pid=0,
        cpus=0,
        cpus_max=0,
        disk_limits={},
        memory=MemoryNow(),
        balloon="",
        ready=False,
        agent=False,
        addresses=(),
        template="",
        spares=0,
        qos={},
        note=detail,
        ended=Ended(epoch=status.epoch, reason=reason, at=ctx.clock.time(), detail=detail),
    )


def _sweep(ctx: Context, records: list[InstanceRecord], alive: Mapping[str, object]) -> None:
    """Remove runtime directories of VMs that do not run. Disks and VMs without a record are only
    reported: no crash of ours leaves any (the record is written first and deleted last), so they are
    what somebody restored or moved, and not ours to destroy."""
    known = {record.uid for record in records}
    running = {ctx.paths.runtime(uid).directory.name for uid in alive}
    running |= {ctx.paths.next_runtime(uid).directory.name for uid in alive if uid not in known}
    if ctx.paths.machines.exists():
        for directory in ctx.paths.machines.iterdir():
            if directory.name not in running:
                shutil.rmtree(directory, ignore_errors=True)
    for directory in ctx.paths.moments.iterdir():
        shutil.rmtree(directory, ignore_errors=True)  # of forks that an earlier daemon did not finish
    if ctx.paths.instances.exists():
        for directory in ctx.paths.instances.iterdir():
            if directory.name not in known:
                log.warning("files of no instance: %s", directory)
