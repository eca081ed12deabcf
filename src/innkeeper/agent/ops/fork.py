"""Take a moment of a VM, for forks and snapshots of it (docs/architecture.md, "Fork").

A running parent is handed over: it is frozen, its RAM and disks become the common ground, and a second
QEMU that was started beforehand goes on as the parent, on copy-on-write RAM and new disk layers. The
guest notices a pause of some 20 ms; its connections stay, since the new process has the same sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace

from innkeeper.agent import chains, devices, forkable
from innkeeper.agent.context import Context, Running
from innkeeper.agent.lookup import merging, plan_of
from innkeeper.agent.moments import Taken
from innkeeper.agent.ops import balloon
from innkeeper.agent.ops.disklimits import limit_new
from innkeeper.agent.ops.pinning import pin
from innkeeper.agent.qos.enforce import enforce
from innkeeper.agent.quiesce import FileSystems
from innkeeper.drivers.storage.files import failure_of
from innkeeper.drivers.storage.qcow2 import virtual_size, write_empty
from innkeeper.engine.base import DiskPlan, LaunchPlan, Layer, Machine, Moment, RunState
from innkeeper.errors import EngineError, Failed, InnkeeperError
from innkeeper.paths import InstanceFiles
from innkeeper.spec.finding import refuse
from innkeeper.spec.instance import InstanceRecord, State
from innkeeper.spec.overcommit import translated_bytes

# A stand-in takes some 20 ms; one that takes longer than this is given up, and the VM goes on itself.
PAUSE_DEADLINE_S = 5.0
STUCK_NOTE = "its file systems may still be frozen: the guest's agent did not answer; restart the guest"
Chains = dict[str, tuple[Layer, ...]]


async def freeze(ctx: Context, record: InstanceRecord) -> None:
    """Take the moment that is waited for; who waits gets it, or the reason why not."""
    token = ctx.moments.waiting(record.uid)
    if token is None:
        return
    try:
        running = ctx.running.get(record.uid)
        if running is not None:
            async with FileSystems(running, wanted=ctx.moments.wants_quiet(token)) as file_systems:
                await _of_running(ctx, record, running, token, file_systems)
            if file_systems.stuck:
                await ctx.publish(record, note=STUCK_NOTE)
        else:
            _of_stopped(ctx, record, token)
    except InnkeeperError as error:
        ctx.moments.fail(record.uid, token, error)
    except OSError as error:
        ctx.moments.fail(record.uid, token, failure_of(error, f"{record.name} could not be frozen"))
    except BaseException:
        ctx.moments.fail(record.uid, token, Failed(f"{record.name} could not be frozen"))
        raise
    else:
        ctx.moments.taken_for(token)
        ctx.checkpoint("fork.done")


async def _of_running(
    ctx: Context, record: InstanceRecord, running: Running, token: str, file_systems: FileSystems
) -> None:
    files = ctx.paths.instance(record.uid)
    plan = await forkable_plan(ctx, record, running)
    quiesced = await file_systems.freeze()
    async with running.agent.channel.held(), AsyncExitStack() as undo:
        frozen, own = new_layers(ctx, plan, files, token, undo)
        directory = ctx.paths.moments / token
        directory.mkdir(mode=0o700)
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        if files.uefi_vars.exists():
            # A copy writes them anew when it goes on: they are in the device state as well.
            shutil.copyfile(files.uefi_vars, directory / "vars.fd")
        ctx.checkpoint("fork.layers")
        halts = ctx.moments.halts(token)
        next_plan = replace(
            plan,
            ram_private=True,
            memory=merging(ctx, record, plan.memory),
            disks=over(plan.disks, own, frozen),
            paused=plan.paused or halts,
        )
        moment = Moment(running.machine.share_ram(), directory / "device-state")
        taken = Taken(next_plan, moment, for_copies(next_plan, frozen), directory, quiesced=quiesced)
        # From here on copies may get ready to start, beside the stand-in.
        ctx.moments.prepare(record.uid, token, taken, users(ctx, token))
        new = await stand_in(ctx, record, running, next_plan, undo, paused=plan.paused)
        ctx.checkpoint("fork.waiting")
        begun = time.perf_counter()
        async with within(PAUSE_DEADLINE_S):
            await running.machine.freeze(moment.state)
            ctx.checkpoint("fork.frozen")
            before = chains.read(files)
            chains.change(files, {**before, **{name: (own[name], *frozen[name]) for name in own}}, undo)
            ctx.checkpoint("fork.chained")
            await new.restore(moment, paused=next_plan.paused)
        taken.pause_ms = round((time.perf_counter() - begun) * 1000, 1)
        ctx.checkpoint("fork.restored")
        point_of_no_return(running, undo)
        taken.ready.set()  # not before: what a copy reads of the RAM, the old process must never write again
        await go_on_as(ctx, record, running, new, next_plan)
    chains.settle(files)
    drop_first_names(plan, own)
    running.forked = True
    await ctx.publish(record, pid=running.machine.pid, pause_ms=taken.pause_ms)
    if halts:
        await ctx.publish(record, state=State.PAUSED, note="its state is being saved")


def users(ctx: Context, token: str) -> set[str]:
    """The forks that are to be started from the moment. One that is being removed has let go of it already,
    and would hold it for ever."""
    return {
        one.uid
        for one in ctx.records.values()
        if one.fork and one.fork.moment == token and not one.wanted.removed
    }


def drop_first_names(plan: LaunchPlan, own: Mapping[str, Layer]) -> None:
    """A frozen layer has its name under layers/ now; the one it had as a top layer goes."""
    for disk in plan.disks:
        if disk.name in own:
            disk.chain[0].path.unlink(missing_ok=True)


async def forkable_plan(ctx: Context, record: InstanceRecord, running: Running) -> LaunchPlan:
    """The plan of a process that can take over from the running one; refuses what cannot be forked."""
    ctx.checkpoint("fork.begun")
    refuse(forkable.of_running(ctx, record, running))
    assert running.plan is not None
    was = await running.machine.run_state()
    refuse(forkable.of_state(record, was))
    devices.keep_plan(ctx, running, await devices.as_it_is(running.machine, running.plan))
    await balloon.hold(running)
    plan = _successor(running.plan, paused=was is RunState.PAUSED)
    if running.machine.ram_private:
        plan = await _promote(ctx, record, running, plan)
    return plan


def _successor(plan: LaunchPlan, *, paused: bool) -> LaunchPlan:
    translated = translated_bytes(plan.accelerator, plan.memory_bytes)
    return replace(plan, kernel=None, incoming=True, paused=paused, translated_bytes=translated)


def promotable(ctx: Context, record: InstanceRecord, running: Running) -> bool:
    """Whether a VM that was forked should get RAM of its own now, so that its next fork need not wait for
    that: its forks have started, and there is memory for the copy twice over."""
    if not (running.forked and running.plan and running.machine.ram_private):
        return False
    if ctx.moments.has(record.uid):
        return False
    if page := running.plan.memory.page_bytes:
        return ctx.host.hugepages_free(page) * page >= running.plan.ram_bytes
    return ctx.host.memory_available_bytes() > 2 * running.plan.ram_bytes


async def promote(ctx: Context, record: InstanceRecord) -> None:
    """Ahead of the next fork, while nothing else is asked of the VM."""
    running = ctx.running[record.uid]
    running.forked = False  # tried once; the next fork does it again where this fails
    if running.plan is not None:
        there_is = await devices.as_it_is(running.machine, running.plan)
        plan = _successor(there_is, paused=False)
        await _promote(ctx, record, running, plan)
        await ctx.publish(record, pid=running.machine.pid)


async def _promote(ctx: Context, record: InstanceRecord, running: Running, plan: LaunchPlan) -> LaunchPlan:
    """A fork's RAM is a view of its parent's; give it RAM of its own, live, so that it can be forked."""
    plan = replace(plan, ram_private=False)
    async with running.agent.channel.held(), AsyncExitStack() as undo:
        new = await stand_in(ctx, record, running, plan, undo, paused=plan.paused)
        ctx.checkpoint("promote.waiting")
        await new.receive(running.machine)
        ctx.checkpoint("promote.moved")
        point_of_no_return(running, undo)
        await go_on_as(ctx, record, running, new, plan, resume=not plan.paused)
    ctx.checkpoint("promote.done")
    return plan


async def stand_in(
    ctx: Context,
    record: InstanceRecord,
    running: Running,
    plan: LaunchPlan,
    undo: AsyncExitStack,
    *,
    paused: bool,
) -> Machine:
    """A process that may go on as the VM; until then `undo` ends it and lets the VM itself go on, unless
    it was `paused`."""
    files = ctx.paths.next_runtime(record.uid)
    running.at_rest.clear()
    undo.push_async_callback(_stay, ctx, running, paused)
    if record.spec.qos.memory.limit is not None:
        enforce(ctx, record.uid, parts=("memory",))  # both are in its group, and a limit is for one
    new = await ctx.engine.stand_in(running.machine, plan, files, ctx.owner(record.uid))
    undo.callback(shutil.rmtree, files.directory, ignore_errors=True)
    undo.push_async_callback(new.detach)
    undo.push_async_callback(new.kill)
    await limit_new(record, new, plan)
    await ctx.on_stand_in(record.uid, files)
    return new


async def _stay(ctx: Context, running: Running, paused: bool) -> None:
    """Why it stays is told by whoever gives up; a process that is gone has nothing to add."""
    with contextlib.suppress(EngineError):
        await running.machine.thaw(paused=paused)
    running.at_rest.set()
    ctx.qos_changed.set()


def point_of_no_return(running: Running, undo: AsyncExitStack) -> None:
    """The stand-in has all of it: from here on that one is the VM."""
    undo.pop_all()
    running.machine.retire()


@contextlib.asynccontextmanager
async def within(deadline_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError:
        raise EngineError(f"QEMU did not hand over the VM within {deadline_s:g} s") from None


async def go_on_as(
    ctx: Context,
    record: InstanceRecord,
    running: Running,
    new: Machine,
    plan: LaunchPlan,
    *,
    resume: bool = False,
) -> None:
    """Done to the end also when the step is given up: the old process cannot go on any more."""

    async def finish() -> None:
        if resume:
            with contextlib.suppress(EngineError):  # it shows as paused, and the next look resumes it
                await new.resume()
        await new.succeed(running.machine)
        ctx.checkpoint("fork.taken_over")
        await _replaced(ctx, record, running, new, plan)

    finishing = asyncio.create_task(finish())
    try:
        await asyncio.shield(finishing)
    except asyncio.CancelledError:
        await asyncio.wait({finishing})
        raise


async def _replaced(
    ctx: Context, record: InstanceRecord, running: Running, machine: Machine, plan: LaunchPlan
) -> None:
    """The new process is the VM: its runtime directory takes the place of the old one's."""
    directory = ctx.paths.runtime(record.uid).directory
    shutil.rmtree(directory, ignore_errors=True)
    ctx.paths.next_runtime(record.uid).directory.rename(directory)
    machine.renamed(ctx.paths.runtime(record.uid))
    running.plan = plan
    # Its balloon begins anew, and so does the time it has to reach a limit.
    running.balloon = running.limit_waits = None
    with contextlib.suppress(InnkeeperError):  # it runs on where it may
        await pin(record, machine)
    running.agent.channel.drop()
    ctx.checkpoint("fork.renamed")
    await ctx.on_replaced(record, running, machine)
    running.at_rest.set()
    ctx.qos_changed.set()


def new_layers(
    ctx: Context, plan: LaunchPlan, files: InstanceFiles, token: str, undo: ExitStack | AsyncExitStack
) -> tuple[Chains, dict[str, Layer]]:
    """For each disk that is written: its top layer under a name of its own in layers/ (the frozen chain
    from there down), and a new empty layer over it for the parent. Nothing refers to them yet.

    A disk of the parent's own that is only read gets the name as well, so that it outlives the parent.
    """
    frozen: Chains = {}
    own: dict[str, Layer] = {}
    for disk in plan.disks:
        top = disk.chain[0].path
        if disk.readonly and (files.directory not in top.parents or disk.chain[0].format != "qcow2"):
            continue
        layer = ctx.paths.layers / f"{token}-{disk.name}.qcow2"
        if layer.exists():
            raise Failed("That moment is over", hint="fork it again")
        os.link(top, layer)
        undo.callback(layer.unlink, missing_ok=True)
        frozen[disk.name] = (Layer(layer, "qcow2"), *disk.chain[1:])
        if disk.readonly:
            continue
        fresh = files.directory / f"{disk.name}.{token}.qcow2"
        write_empty(fresh, virtual_size(top), backing=layer, backing_format="qcow2")
        undo.callback(fresh.unlink, missing_ok=True)
        own[disk.name] = Layer(fresh, "qcow2")
    return frozen, own


def over(disks: tuple[DiskPlan, ...], own: dict[str, Layer], frozen: Chains) -> tuple[DiskPlan, ...]:
    return tuple(
        replace(disk, chain=(own[disk.name], *frozen[disk.name])) if disk.name in own else disk
        for disk in disks
    )


def for_copies(plan: LaunchPlan, frozen: Chains) -> Chains:
    return {disk.name: frozen.get(disk.name, disk.chain) for disk in plan.disks}


def _of_stopped(ctx: Context, record: InstanceRecord, token: str) -> None:
    """A linked clone's ground: the disks as they are; forks boot."""
    files = ctx.paths.instance(record.uid)
    plan = plan_of(ctx, record)
    refuse(forkable.of_disks(plan, files, ctx.paths.layers))
    with ExitStack() as undo:
        frozen, own = new_layers(ctx, plan, files, token, undo)
        directory = ctx.paths.moments / token
        directory.mkdir(mode=0o700)
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        if files.uefi_vars.exists():
            shutil.copyfile(files.uefi_vars, directory / "vars.fd")
        ctx.checkpoint("fork.layers")
        before = chains.read(files)
        chains.write(files, {**before, **{name: (own[name], *frozen[name]) for name in own}})
        ctx.checkpoint("fork.chained")
        undo.pop_all()
    drop_first_names(plan, own)
    taken = Taken(None, None, for_copies(plan, frozen), directory)
    taken.ready.set()
    ctx.moments.prepare(record.uid, token, taken, users(ctx, token))
