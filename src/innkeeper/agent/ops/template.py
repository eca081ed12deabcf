"""Make a running VM a template, and let a template run on.

As in a fork the VM is frozen and handed over to a second QEMU; but that one is not given the state. It waits,
with the RAM, which nobody writes any more, and copies are started from it for as long as it does. None of
them needs the VM for that, so none makes anybody stand still. To run on, it takes the state after all.
"""

from __future__ import annotations

import secrets
import shutil
import time
from contextlib import AsyncExitStack
from dataclasses import replace

from innkeeper.agent import chains, layers, templates
from innkeeper.agent.context import Context, Running
from innkeeper.agent.lookup import merging
from innkeeper.agent.ops import fork
from innkeeper.engine import plan_file
from innkeeper.errors import Failed
from innkeeper.guest.identity import catch_up
from innkeeper.spec.instance import ForkOrigin, InstanceRecord, State


async def make_template(ctx: Context, record: InstanceRecord) -> None:
    """Raises what makes it impossible to fork the VM; then it runs on."""
    running = ctx.running[record.uid]
    ctx.checkpoint("template.begun")
    plan = await fork.forkable_plan(ctx, record, running)
    token, files = secrets.token_hex(8), ctx.paths.instance(record.uid)
    next_files = ctx.paths.next_runtime(record.uid)
    async with running.agent.channel.held(), AsyncExitStack() as undo:
        frozen, own = fork.new_layers(ctx, plan, files, token, undo)
        # A start after the template's end finds layers of its own over the frozen ones, like a fork's.
        next_plan = replace(
            plan,
            ram_private=True,
            memory=merging(ctx, record, plan.memory),
            disks=fork.over(plan.disks, own, frozen),
        )
        new = await fork.stand_in(ctx, record, running, next_plan, undo, paused=plan.paused)
        moment = next_files.moment
        moment.directory.mkdir(mode=0o700)
        ctx.checkpoint("template.waiting")
        begun = time.perf_counter()
        async with fork.within(fork.PAUSE_DEADLINE_S):
            await running.machine.freeze(moment.device_state)
        if files.uefi_vars.exists():
            shutil.copyfile(files.uefi_vars, moment.uefi_vars)
        ctx.checkpoint("template.frozen")
        before = chains.read(files)
        chains.change(files, {**before, **{name: (own[name], *frozen[name]) for name in own}}, undo)
        templates.write(next_files, token, fork.for_copies(next_plan, frozen))
        took = round((time.perf_counter() - begun) * 1000, 1)
        ctx.checkpoint("template.written")
        fork.point_of_no_return(running, undo)
        await fork.go_on_as(ctx, record, running, new, next_plan)
    chains.settle(files)
    fork.drop_first_names(plan, own)
    running.forked = False
    await ctx.publish(
        record, durable=True, state=State.PAUSED, pid=running.machine.pid, template=token, pause_ms=took
    )
    ctx.spares.changed.set()
    ctx.checkpoint("template.done")


async def wake(ctx: Context, record: InstanceRecord) -> None:
    """It runs on from its moment, on copy-on-write RAM like its copies, which do not notice."""
    running = ctx.running[record.uid]
    status = ctx.statuses[record.uid]
    origin = ForkOrigin(parent=record.name, parent_uid=record.uid, moment=status.template, template=True)
    with templates.borrowed(ctx, origin) as taken:
        if taken.machine is None:
            raise Failed(f"{record.name} has no memory to run on from")
        await running.machine.restore(taken.machine, paused=False)
    await _over(ctx, record, running)
    ctx.checkpoint("wake.done")


async def _over(ctx: Context, record: InstanceRecord, running: Running) -> None:
    files = ctx.paths.runtime(record.uid)
    shutil.rmtree(files.moment.directory, ignore_errors=True)
    if running.plan is not None:
        plan_file.save(files, running.plan)
    await ctx.publish(record, state=State.RUNNING, template="", spares=0, note="")
    layers.sweep(ctx)
    ctx.spares.changed.set()
    if running.machine.agent_open:
        await catch_up(running.agent, ctx.clock.time)
