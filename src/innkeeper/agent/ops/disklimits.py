"""Hold the disks of a VM to the limits that its spec has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from innkeeper.agent.context import Context, Running
from innkeeper.engine.base import LaunchPlan, Machine
from innkeeper.engine.throttle import Throttle
from innkeeper.spec.disklimits import limits_of
from innkeeper.spec.diskqos import LimitsInForce
from innkeeper.spec.instance import InstanceRecord, InstanceSpec

# Of all disks of one VM; that of a disk's own has the disk's name.
SHARED_GROUP: Final = "shared"

Limits = dict[str, LimitsInForce | None]


def throttle_of(spec: InstanceSpec, disk: str) -> Throttle | None:
    limits = limits_of(spec, disk)
    if limits is None:
        return None
    return Throttle(SHARED_GROUP if limits.shared else f"disk-{disk}", limits.limits)


def as_status(throttles: Mapping[str, Throttle | None]) -> Limits:
    return {name: _limits(one) if one else None for name, one in throttles.items()}


def _limits(throttle: Throttle) -> LimitsInForce:
    fields: dict[str, Any] = dict(throttle.limits)
    # Not checked: it is what there is, whoever set it.
    return LimitsInForce.model_construct(**fields, shared=throttle.group == SHARED_GROUP)


def changes(spec: InstanceSpec, now: Mapping[str, Throttle | None]) -> dict[str, Throttle | None]:
    """What has to be set, disk by disk, and nothing else: setting limits anew would grant another burst.

    Every disk of a group is named, though QEMU keeps one set of limits for all: what waits at a disk goes on
    by the new limits only when they are set there (block/throttle-groups.c, throttle_group_restart_tgm()).
    """
    wanted = {name: throttle_of(spec, name) for name in now}
    return {name: one for name, one in wanted.items() if one != now[name]}


async def limit_new(record: InstanceRecord, machine: Machine, plan: LaunchPlan) -> Limits:
    """Of a process that is about to be the VM: nothing limits its disks yet. What is in force then. Raises
    EngineError."""
    found: dict[str, Throttle | None] = dict.fromkeys(disk.name for disk in plan.disks)
    if changes(record.spec, found):
        return await _limit(record, machine)
    return as_status(found)


async def fit_disks(ctx: Context, record: InstanceRecord, running: Running) -> None:
    """Of a running VM, whatever its disks were held to before."""
    await ctx.publish(record, disk_limits=await _limit(record, running.machine))


async def _limit(record: InstanceRecord, machine: Machine) -> Limits:
    for disk, throttle in changes(record.spec, await machine.throttles()).items():
        await machine.throttle(disk, throttle)
    return as_status(await machine.throttles())
