"""Give a running VM vCPUs, or take some back: the guest brings them online, and lets them go, or not."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from innkeeper.agent.context import Context, Running
from innkeeper.engine.base import Machine
from innkeeper.errors import AgentMissing, Failed, GuestTimeout, Unsupported
from innkeeper.guest.vcpus import bring_online
from innkeeper.spec.instance import InstanceRecord

# An idle tiny guest lets one go in 60 ms and brings one online in 100; a busy one under TCG takes a second.
UNPLUG_DEADLINE_S: Final = 10.0
ONLINE_DEADLINE_S: Final = 10.0
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
    for index in sorted(set(range(count)) - present):
        await machine.plug_vcpu(index)
        ctx.checkpoint("change.plugged")
    for index in sorted(present - set(range(count)), reverse=True):
        await _unplug(record, machine, index)
        ctx.checkpoint("change.unplugged")
    if not present >= set(range(count)):
        await _use(ctx, record, running, count)


async def _unplug(record: InstanceRecord, machine: Machine, index: int) -> None:
    await machine.unplug_vcpu(index)
    try:
        async with asyncio.timeout(UNPLUG_DEADLINE_S):
            while True:
                if not (await machine.vcpus())[index].present:
                    return
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise GuestTimeout(
            f"{record.name} did not give up vCPU {index} within {UNPLUG_DEADLINE_S:g} s: its guest refuses, "
            "or knows nothing of such things",
            hint=f"it keeps {index + 1} vCPUs until it is restarted (inn restart {record.name}); what its "
            f"kernel says: inn logs {record.name}",
        ) from None


async def _use(ctx: Context, record: InstanceRecord, running: Running, count: int) -> None:
    """See that the guest uses them; Linux without udev's rule for that leaves them offline."""
    if not running.machine.agent_open:
        await ctx.publish(record, note=NO_AGENT_NOTE)
        return
    online = None
    with contextlib.suppress(AgentMissing, Unsupported, Failed, GuestTimeout):
        online = await bring_online(running.agent, count, ONLINE_DEADLINE_S)
    if online is None:
        await ctx.publish(record, note=NO_AGENT_NOTE)
    elif online < count:
        raise GuestTimeout(
            f"{record.name} has {count} vCPUs, but its guest uses {online} of them after "
            f"{ONLINE_DEADLINE_S:g} s",
            hint=f"see what its kernel says (inn logs {record.name}), or restart it: "
            f"inn restart {record.name}",
        )
