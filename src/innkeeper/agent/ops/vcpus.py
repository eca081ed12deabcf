"""Give a running VM vCPUs, or take some back: the guest brings them online, and lets them go, or not.

Where QEMU does not survive the unplugging (unplug_spoils) vCPUs are parked instead: the guest takes them out
of use, and they stay, asleep, until it is to use them again or is restarted.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from innkeeper.agent import devices
from innkeeper.agent.context import Context, Running
from innkeeper.engine.base import Machine
from innkeeper.errors import AgentMissing, Failed, GuestTimeout, InnkeeperError, Unsupported
from innkeeper.guest.vcpus import use_vcpus
from innkeeper.spec.instance import InstanceRecord

# An idle tiny guest lets one go in 60 ms and brings one online in 100; a busy one under TCG takes a second.
UNPLUG_DEADLINE_S: Final = 10.0
USE_DEADLINE_S: Final = 10.0
_LOOK_S: Final = 0.02

NO_AGENT_NOTE: Final = (
    "vCPUs were added; no guest agent answers to bring them online: the guest may do so itself"
)


async def fit_vcpus(ctx: Context, record: InstanceRecord, running: Running) -> None:
    """As many vCPUs as the spec says, if the VM has places for them. Raises GuestTimeout when the guest keeps
    one that it is to give up, or does not use one that it got."""
    machine, count = running.machine, record.spec.cpu.count
    places = await machine.vcpus()
    if count > len(places):
        return  # at its next start
    present = {place.index for place in places if place.present}
    missing = sorted(set(range(count)) - present)
    surplus = sorted(present - set(range(count)), reverse=True)
    for index in missing:
        await machine.plug_vcpu(index)
        ctx.checkpoint("change.plugged")
    if machine.unplug_spoils and (surplus or _parked(running)):
        await _park(ctx, record, running, len(present) + len(missing), count)
        return
    for index in surplus:
        await _unplug(record, machine, index)
    if missing:
        await _use_all(ctx, record, running, count)


def _parked(running: Running) -> int:
    return running.plan.parked if running.plan else 0


async def _unplug(record: InstanceRecord, machine: Machine, index: int) -> None:
    await machine.unplug_vcpu(index)
    try:
        async with asyncio.timeout(UNPLUG_DEADLINE_S):
            while True:
                if not (await machine.vcpus())[index].present:
                    return
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise _kept(
            record, f"did not give up vCPU {index} within {UNPLUG_DEADLINE_S:g} s", index + 1
        ) from None


async def _park(ctx: Context, record: InstanceRecord, running: Running, there: int, count: int) -> None:
    """Have the guest use `count` of the vCPUs that are `there`."""
    if running.plan is None or not running.machine.agent_open:
        raise Unsupported(
            f"{record.name} cannot give up vCPUs, or use again what it gave up: QEMU "
            f"{running.machine.version} under TCG does not survive unplugging, and no guest agent answers "
            "that could take them out of use",
            hint=f"install qemu-guest-agent in the guest, or restart it: inn restart {record.name}",
        )
    used = there - running.plan.parked
    try:
        used = await use_vcpus(running.agent, count, USE_DEADLINE_S)
    finally:
        devices.keep_plan(ctx, running, replace(running.plan, cpus=there, parked=max(0, there - used)))
    ctx.checkpoint("change.parked")
    if used != count:
        verb = "did not take its vCPUs out of use" if used > count else "did not use its vCPUs again"
        raise _kept(record, f"{verb} within {USE_DEADLINE_S:g} s", used)


async def _use_all(ctx: Context, record: InstanceRecord, running: Running, count: int) -> None:
    """Linux without udev's rule for it leaves new vCPUs offline."""
    if not running.machine.agent_open:
        await ctx.publish(record, note=NO_AGENT_NOTE)
        return
    try:
        used = await use_vcpus(running.agent, count, USE_DEADLINE_S)
    except (AgentMissing, Unsupported, Failed):
        await ctx.publish(record, note=NO_AGENT_NOTE)
        return
    if used < count:
        raise GuestTimeout(
            f"{record.name} has {count} vCPUs, but its guest uses {used} of them after {USE_DEADLINE_S:g} s",
            hint=f"see what its kernel says (inn logs {record.name}), or restart it: "
            f"inn restart {record.name}",
        )


def _kept(record: InstanceRecord, what: str, used: int) -> InnkeeperError:
    return GuestTimeout(
        f"{record.name} {what}: its guest refuses, or knows nothing of such things",
        hint=f"it keeps {used} until it is asked again or restarted (inn restart {record.name}); what its "
        f"kernel says: inn logs {record.name}",
    )
