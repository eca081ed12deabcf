"""What a running VM has by way of devices now, as against its launch plan.

A VM may be given devices, or give them up, while it runs - and a guest may give one up long after it was
asked to. The plan that forks, snapshots and stand-ins are started with must say what is there, or the state
does not fit: so QEMU is asked before each of these, after each change, and when a daemon takes over.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from innkeeper.agent.context import Context, Running
from innkeeper.engine import plan_file
from innkeeper.engine.base import LaunchPlan, Machine
from innkeeper.errors import Unsupported
from innkeeper.spec.instance import InstanceRecord
from innkeeper.spec.memory import MemoryNow


async def as_it_is(machine: Machine, plan: LaunchPlan) -> LaunchPlan:
    """The plan of a process that would have the devices that `machine` has. Raises EngineError when it does
    not answer, Unsupported when no process can be started like that."""
    present = [place.index for place in await machine.vcpus() if place.present]
    if present != list(range(len(present))):
        missing = min(set(range(len(present))) - set(present))
        raise Unsupported(
            f"{plan.name} gave up vCPU {missing} late, and has later ones: no other process can be like it",
            hint=f"give it its vCPUs again: inn set {plan.name} cpu.count={len(present) + 1}",
        )
    plan = replace(plan, cpus=len(present), cpus_built=plan.cpus_built or plan.cpus)
    if plan.memory.slots:
        plan = replace(plan, memory=replace(plan.memory, dimms=tuple(await machine.dimms())))
    return plan


def memory_now(plan: LaunchPlan) -> MemoryNow:
    start, most = plan.memory_bytes, plan.memory.slots * plan.memory.step_bytes
    return MemoryNow(
        size=plan.ram_bytes, start=start, most=start + most, step=plan.memory.step_bytes if most else 0
    )


async def note(ctx: Context, record: InstanceRecord, running: Running) -> None:
    """Look, and put down what is there: in the plan beside its sockets, and in its status."""
    places = await running.machine.vcpus()
    if running.plan is not None:
        with contextlib.suppress(Unsupported):
            keep_plan(ctx, running, await as_it_is(running.machine, running.plan))
    used = sum(place.present for place in places) - (running.plan.parked if running.plan else 0)
    memory = memory_now(running.plan) if running.plan else MemoryNow()
    await ctx.publish(record, cpus=used, cpus_max=len(places), memory=memory)


def keep_plan(ctx: Context, running: Running, plan: LaunchPlan) -> None:
    """It is the plan of what runs from now on, also for the next daemon."""
    if plan != running.plan:
        running.plan = plan
        with contextlib.suppress(FileNotFoundError):  # it has ended
            plan_file.save(ctx.paths.runtime(running.uid), plan)
