"""Start QEMU for an instance; done when its monitor answers. Readiness of the guest comes later."""

from __future__ import annotations

import time
from dataclasses import replace

from innkeeper.agent.context import Context
from innkeeper.agent.cpus import check_cpu
from innkeeper.agent.lookup import plan_of
from innkeeper.agent.ops.copy import start_copy
from innkeeper.agent.ops.launch import admit, launch
from innkeeper.spec.instance import InstanceRecord, State


async def start(ctx: Context, record: InstanceRecord) -> None:
    begun = time.perf_counter()
    await ctx.publish(
        record, state=State.STARTING, ready=False, agent=False, panicked=False, addresses=(), note="", pid=0
    )
    ctx.checkpoint("start.begun")
    status = ctx.statuses[record.uid]
    first = record.wanted.epoch == 1 and status.epoch == 0
    if record.fork is not None and record.fork.live and first and status.reverted != record.fork.moment:
        await start_copy(ctx, record, record.fork, begun)
        return
    await check_cpu(ctx, record)
    admit(ctx, record, record.spec.memory.size)
    plan = plan_of(ctx, record)
    if record.fork is not None and first:
        plan = replace(plan, inherited_macs=())  # its disks have another VM's machine-id
    await launch(ctx, record, plan, begun)
    if record.fork is not None:
        ctx.moments.release(record.fork.moment, record.uid)
