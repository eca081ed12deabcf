"""Run a plan: admission, QEMU, and what the agent keeps of a running VM."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from innkeeper.agent import memorycheck
from innkeeper.agent.context import Context, Running
from innkeeper.agent.devices import memory_now
from innkeeper.agent.lookup import expects_agent, image_of
from innkeeper.agent.ops.disklimits import limit_new
from innkeeper.agent.ops.pinning import pin
from innkeeper.agent.qos.enforce import enforce
from innkeeper.drivers.storage.files import require_free
from innkeeper.engine import plan_file
from innkeeper.engine.base import LaunchPlan, Machine, Moment
from innkeeper.errors import EngineError, InnkeeperError, NoCapacity, StartFailed
from innkeeper.guest.agent import GuestAgent
from innkeeper.spec.accelerator import choose_accelerator
from innkeeper.spec.finding import refuse
from innkeeper.spec.instance import InstanceRecord, State
from innkeeper.spec.overcommit import needed_now
from innkeeper.telemetry.tail import last_lines
from innkeeper.units import MiB, human_size

# What the host keeps for itself when a VM starts.
MEMORY_RESERVE_BYTES = 64 * MiB
# QEMU's own memory beside guest RAM: measured 45-75 MiB resident under TCG (bench/memory).
QEMU_OVERHEAD_BYTES = 64 * MiB


@dataclass(frozen=True)
class Source:
    """What a VM wakes up from: the moment, and how to wait until it is there."""

    moment: Moment
    ready: Callable[[], Awaitable[None]] | None = None
    waiting: Machine | None = None  # was spawned ahead for it


NO_AGENT_NOTE = (
    "no guest agent answered at the moment of the fork: host name, MAC addresses, machine-id and clock "
    "are still its parent's"
)
NO_CLOCK_NOTE = "no guest agent answered at the moment of the snapshot: the guest's clock is still of then"


async def launch(
    ctx: Context,
    record: InstanceRecord,
    plan: LaunchPlan,
    begun: float,
    source: Source | None = None,
) -> None:
    """Run `plan`, as a copy of another VM if a source is given; `begun` is when the step began."""
    files = ctx.paths.runtime(record.uid)
    offset = plan.console_log.stat().st_size if plan.console_log.exists() else 0
    planned = time.perf_counter()
    async with AsyncExitStack() as undo:
        undo.callback(ctx.cgroups.leave, record.uid)
        _make_group(ctx, record)
        async with ctx.launch_slots:
            machine = source.waiting if source else None
            if machine is None:
                moment = source.moment if source else None
                machine = await ctx.engine.launch(plan, files, ctx.owner(record.uid), moment)
            undo.push_async_callback(machine.kill)
            if source and source.waiting:
                plan_file.save(files, plan)  # it has a name now
            times = dict(machine.times_ms)
            disk_limits = await limit_new(record, machine, plan)
            if source is not None:
                times["restore"] = await _restored(machine, source, plan)
        await pin(record, machine)
        ctx.checkpoint("start.launched")
        running = Running(machine, record.uid, GuestAgent(files.agent), plan, console_offset=offset)
        running.balloon_asked = source is not None  # it comes with the balloon it had
        if plan.cpus - plan.parked == record.spec.cpu.count and plan.ram_bytes == record.spec.memory.size:
            running.fitted = machine, record.spec  # a copy has its parent's devices, which may be others
        running.woke_at = ctx.clock.time()
        running.woken = source is not None and plan.inherited_macs is None
        qemu = ctx.host.qemu(record.spec.machine.architecture)
        _, reason = choose_accelerator(record.spec.machine.accelerator, qemu.kvm, qemu.kvm_detail)
        ready = not expects_agent(record, image_of(ctx, record)) and not plan.paused
        await ctx.publish(
            record,
            state=State.PAUSED if plan.paused else State.RUNNING,
            epoch=plan.epoch,
            accelerator=plan.accelerator,
            accelerator_reason=reason,
            machine=plan.machine,
            qemu=machine.version,
            pid=machine.pid,
            cpus=plan.cpus - plan.parked,
            cpus_max=plan.cpus_max or plan.cpus,
            memory=memory_now(plan),
            disk_limits=disk_limits,
            changed=record.wanted.change,
            started_at=running.woke_at if source and source.waiting else machine.started_at,
            ready=ready and not (source and machine.agent_open),
            note=_note(running) if source and not machine.agent_open else "",
            times_ms={
                "plan": round((planned - begun) * 1000, 1),
                **times,
                "total": round((time.perf_counter() - begun) * 1000, 1),
            },
        )
        undo.pop_all()
    ctx.running[record.uid] = running
    ctx.qos_changed.set()
    ctx.on_launched(record, running)
    ctx.checkpoint("start.published")


def _make_group(ctx: Context, record: InstanceRecord) -> None:
    """Before anything runs in it: what the VM is to have holds from its first instruction."""
    ctx.launching.add(record.uid)
    try:
        with contextlib.suppress(InnkeeperError):  # it runs all the same; its status says so
            ctx.cgroups.create(record.uid)
            enforce(ctx, record.uid)  # the keeper sees to the others: of many that start, once
    finally:
        ctx.launching.discard(record.uid)


async def _restored(machine: Machine, source: Source, plan: LaunchPlan) -> float:
    """Wait for the moment and take it; how long the taking was, in milliseconds."""
    if source.ready is not None:
        await source.ready()
    begun = time.perf_counter()
    try:
        await machine.restore(source.moment, paused=plan.paused)
    except EngineError as error:
        why = last_lines(plan.qemu_log, 3) or error.message
        raise StartFailed(f"QEMU cannot go on from the moment of the fork: {why}") from error
    return round((time.perf_counter() - begun) * 1000, 1)


def _note(running: Running) -> str:
    return NO_CLOCK_NOTE if running.woken else NO_AGENT_NOTE


def admit(ctx: Context, record: InstanceRecord, ram_bytes: int) -> None:
    """Refuse before anything is started what could not run: QEMU would die, or the host swap.

    `ram_bytes` is what the guest will take of the host: all of its RAM, or what a fork is reckoned to
    write of it. Huge pages are promised to each process whole.
    """
    refuse(memorycheck.of_start(record.spec.memory, ctx.host))
    needed = QEMU_OVERHEAD_BYTES + (0 if record.spec.memory.hugepages else ram_bytes)
    available = ctx.host.memory_available_bytes()
    if needed_now(needed, ctx.host.settings.overcommit.memory) + MEMORY_RESERVE_BYTES > available:
        raise NoCapacity(
            f"Not enough memory to start {record.name}: {human_size(needed)} needed (guest RAM and QEMU), "
            f"{human_size(available)} available on {ctx.host.name}",
            hint="stop another instance, or give this one less memory",
        )
    require_free(ctx.paths.instances, 0)
