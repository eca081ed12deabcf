"""Give a running VM memory, or take some back: the guest brings it online, and gives it up, or not."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from innkeeper.agent import memorycheck
from innkeeper.agent.context import Context, Running
from innkeeper.agent.forkable import memory_of
from innkeeper.agent.lookup import expects_agent, image_of
from innkeeper.agent.ops.launch import MEMORY_RESERVE_BYTES
from innkeeper.engine.base import LaunchPlan
from innkeeper.engine.memory import DimmPlan
from innkeeper.errors import Failed, GuestTimeout, NoCapacity, Unsupported, WrongState
from innkeeper.guest.memory import Range, available_bytes, bring_online, prepare, take_offline
from innkeeper.spec.finding import refuse
from innkeeper.spec.instance import InstanceRecord
from innkeeper.units import MiB, format_size, human_size

# An idle tiny guest under TCG empties 128 MiB in 0.2 s and brings it online in 0.3; one that has to move what
# lies there takes longer. All modules together get this.
SHRINK_DEADLINE_S: Final = 15.0
ONLINE_DEADLINE_S: Final = 15.0
_BACK_DEADLINE_S: Final = 3.0
_LOOK_S: Final = 0.05
# What a guest that shrinks keeps available, at least and as a part of what it has then.
GUEST_RESERVE_BYTES: Final = 32 * MiB
GUEST_RESERVE_PART: Final = 32

NO_AGENT_NOTE: Final = (
    "memory was added; no guest agent answers to bring it online: the guest may do so itself"
)


async def fit_memory(ctx: Context, record: InstanceRecord, running: Running) -> None:
    """As much memory as the spec says, as far as modules can make it so. Raises NoCapacity when the host has
    too little, WrongState when the guest has not booted, Failed when it needs what it is to give up,
    Unsupported when nobody can ask it, and GuestTimeout when it keeps it all the same, or does not use what
    it got."""
    plan, machine = running.plan, running.machine
    wanted = _modules(plan, record.spec.memory.size) if plan else None
    if plan is None or wanted is None:
        return  # at its next start
    there = await machine.dimms()
    if len(there) > wanted:
        await _shrink(ctx, record, running, plan, len(there) - wanted)
        return
    if missing := wanted - len(there):
        _admit(ctx, record, plan, missing * plan.memory.step_bytes)
        await _booted(ctx, record, running)
        if machine.agent_open:
            with contextlib.suppress(Failed, Unsupported):
                await prepare(running.agent)
        taken = {dimm.slot for dimm in there}
        free = [slot for slot in range(plan.memory.slots) if slot not in taken]
        for slot in free[:missing]:
            await machine.plug_dimm(_module(plan, slot), plan)
            ctx.checkpoint("change.plugged")
    if wanted:
        await _use(ctx, record, running, plan)


def _modules(plan: LaunchPlan, size: int) -> int | None:
    """How many make up `size`; None if none do."""
    more, step = size - plan.memory_bytes, plan.memory.step_bytes
    if not plan.memory.slots or more < 0 or more % step or more // step > plan.memory.slots:
        return None
    return more // step


def _module(plan: LaunchPlan, slot: int) -> DimmPlan:
    nodes = len(plan.memory.nodes)
    return DimmPlan(slot, plan.memory.step_bytes, node=slot % nodes if nodes else -1)


def _place(dimm: DimmPlan) -> Range:
    return dimm.address or 0, dimm.size_bytes


def _admit(ctx: Context, record: InstanceRecord, plan: LaunchPlan, more: int) -> None:
    if plan.memory.page_bytes:
        memory = memory_of(record, plan)
        refuse([memorycheck.pool_has(ctx.host, memory, more, f"the memory that {record.name} is to get")])
        return
    available = ctx.host.memory_available_bytes()
    if more + MEMORY_RESERVE_BYTES > available:
        raise NoCapacity(
            f"{record.name} is to get {human_size(more)} more memory, and {human_size(available)} is "
            f"available on {ctx.host.name}",
            hint=f"stop another instance, or set it back: inn set {record.name} "
            f"memory.size={format_size(plan.ram_bytes)}",
        )


async def _booted(ctx: Context, record: InstanceRecord, running: Running) -> None:
    """Linux takes new memory up at the cost of what it has; where that is all in use for booting, it ends."""
    if not running.machine.agent_open and expects_agent(record, image_of(ctx, record)):
        raise WrongState(
            f"{record.name} can take no memory now: its guest agent does not answer, so it may not have "
            "booted",
            hint=f"wait for it (inn wait {record.name}), and repeat it",
        )


async def _use(ctx: Context, record: InstanceRecord, running: Running, plan: LaunchPlan) -> None:
    """See that the guest uses it; Linux leaves it offline where nobody says otherwise."""
    places = [_place(dimm) for dimm in await running.machine.dimms()]
    used = None
    if running.machine.agent_open:
        with contextlib.suppress(Failed, Unsupported):
            used = await bring_online(running.agent, places, ONLINE_DEADLINE_S)
    given = sum(size for _, size in places)
    if used is None:
        await ctx.publish(record, note=NO_AGENT_NOTE)
    elif used < given:
        raise GuestTimeout(
            f"{record.name} was given {human_size(given)} beside its {human_size(plan.memory_bytes)}, but "
            f"its guest uses {human_size(used)} of it after {ONLINE_DEADLINE_S:g} s",
            hint=f"see what its kernel says (inn logs {record.name}), or restart it: "
            f"inn restart {record.name}",
        )


async def _shrink(
    ctx: Context, record: InstanceRecord, running: Running, plan: LaunchPlan, too_many: int
) -> None:
    """The last ones first; where the guest cannot empty one, perhaps it can another. QEMU is asked only for
    what the guest has taken offline: an ejection that the guest has begun nobody can call off."""
    await _spare(record, running, plan, too_many)
    end = asyncio.get_running_loop().time() + SHRINK_DEADLINE_S
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(end):
            for dimm in sorted(await running.machine.dimms(), key=lambda one: -one.slot):
                if too_many and await _given_up(ctx, running, dimm, end):
                    too_many -= 1
                    ctx.checkpoint("change.unplugged")
    kept = await running.machine.dimms()
    if not too_many:
        return
    with contextlib.suppress(Failed, Unsupported):
        await bring_online(running.agent, [_place(dimm) for dimm in kept], _BACK_DEADLINE_S)
    size = plan.memory_bytes + sum(dimm.size_bytes for dimm in kept)
    raise GuestTimeout(
        f"{record.name} did not give up {human_size(too_many * plan.memory.step_bytes)} of its memory: its "
        "guest cannot empty it",
        hint=f"it keeps {format_size(size)} for now; free memory in the guest and repeat it, or restart "
        f"it: inn restart {record.name}",
        details={"memory_bytes": size},
    )


async def _spare(record: InstanceRecord, running: Running, plan: LaunchPlan, too_many: int) -> None:
    """A Linux that gives up memory it needs kills what runs in it, or itself: it is not asked to."""
    if not running.machine.agent_open:
        raise Unsupported(
            f"{record.name} cannot give up memory: no guest agent answers to say how much it can do without",
            hint=f"install qemu-guest-agent in the guest, or restart it: inn restart {record.name}",
        )
    there = await running.machine.dimms()
    # A daemon that was killed in between left some of it offline, and the guest does not count that.
    await bring_online(running.agent, [_place(dimm) for dimm in there], _BACK_DEADLINE_S)
    step, available = plan.memory.step_bytes, await available_bytes(running.agent)
    now = plan.memory_bytes + sum(dimm.size_bytes for dimm in there)
    if available >= too_many * step + _reserve(now - too_many * step):
        return
    can = next((n for n in range(too_many, 0, -1) if available >= n * step + _reserve(now - n * step)), 0)
    less = f"; {format_size(now - can * step)} would do now" if can else ""
    raise Failed(
        f"{record.name} is to give up {human_size(too_many * step)} of memory, and its guest has "
        f"{human_size(available)} available: it would kill what runs in it",
        hint=f"it keeps {format_size(now)}; free memory in the guest and repeat it{less}",
        details={"memory_bytes": now},
    )


def _reserve(remaining_bytes: int) -> int:
    return max(GUEST_RESERVE_BYTES, remaining_bytes // GUEST_RESERVE_PART)


async def _given_up(ctx: Context, running: Running, dimm: DimmPlan, end: float) -> bool:
    """Whether the guest did so in time; False as soon as it cannot, with all of the module in use again."""
    machine = running.machine
    left = end - asyncio.get_running_loop().time()
    if not await take_offline(running.agent, _place(dimm), max(1, int(left / 2))):
        await bring_online(running.agent, [_place(dimm)], _BACK_DEADLINE_S)
        return False
    ctx.checkpoint("change.emptied")
    await machine.unplug_dimm(dimm)
    while any(one.slot == dimm.slot for one in await machine.dimms()):
        if await machine.keeps_dimm(dimm):
            return False
        await asyncio.sleep(_LOOK_S)
    return True
