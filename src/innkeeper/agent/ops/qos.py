"""Give a running VM what its spec promises it now; and what it is promised, for those who ask."""

from __future__ import annotations

import asyncio

from innkeeper.agent.context import Context, Running
from innkeeper.agent.qos import memory
from innkeeper.agent.qos.enforce import enforce_aside
from innkeeper.agent.qos.keeper import REMADE_NOTE
from innkeeper.errors import Failed
from innkeeper.spec.instance import InstanceRecord, InstanceStatus
from innkeeper.spec.qos import CpuReport, DiskReport, QosReport, share_number
from innkeeper.units import format_cores


async def fit_qos(ctx: Context, record: InstanceRecord, running: Running) -> None:
    """Raises Failed when the kernel refuses, with its reason."""
    await _back_in(ctx, record, running)
    outcome = await enforce_aside(ctx)
    not_in_force = {part: why for part, why in outcome.get(record.uid, {}).items() if why}
    await ctx.publish(record, qos=not_in_force)
    ctx.qos_changed.set()  # of the others, the weight of all together
    if not_in_force:
        part, why = next(iter(not_in_force.items()))
        raise Failed(f"qos.{part} of {record.name} is not in force: {why}", hint="see inn doctor")


async def _back_in(ctx: Context, record: InstanceRecord, running: Running) -> None:
    """Where somebody else removed its control group, or moved it out: what is asked now is to hold now, not
    once the keeper has looked. Raises Failed when the kernel refuses."""
    group, pid = ctx.cgroups.get(record.uid), running.machine.pid
    if group is None or not running.at_rest.is_set() or await asyncio.to_thread(group.holds, pid):
        return
    was_in = pid in group.moved_in
    made = ctx.cgroups.create(record.uid)
    await asyncio.to_thread(made.add, running.machine.pids)
    if running.gone.is_set():
        ctx.cgroups.leave(record.uid)  # it ended meanwhile
    elif was_in:
        await ctx.publish(record, note=REMADE_NOTE)


def report(ctx: Context, record: InstanceRecord) -> QosReport:
    """What it is promised, and what of that is in force."""
    status = ctx.statuses.get(record.uid, InstanceStatus())
    qos, runs = record.spec.qos.cpu, record.uid in ctx.running
    weighed = runs and not ctx.cgroups.why_not("cpu")  # else the kernel shares as among any processes
    return QosReport(
        cpu=CpuReport(
            shares=share_number(qos.shares) * record.spec.cpu.count,
            reservation=format_cores(qos.reservation),
            limit=None if qos.limit is None else format_cores(qos.limit),
            entitlement=round(ctx.cpu_entitled.get(record.uid, 0.0), 3) if weighed else None,
            not_in_force=status.qos.get("cpu", "") if runs else "",
        ),
        memory=memory.report(ctx, record),
        disk=DiskReport(
            shares=share_number(record.spec.qos.disk.shares),
            not_in_force=status.qos.get("disk", "") if runs else "",
        ),
    )
