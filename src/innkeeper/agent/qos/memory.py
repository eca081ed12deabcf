"""Memory: what every VM's control group keeps for it, what it may take, and how much may be swapped out.

    reservation  v2: memory.min, and the same of all VMs together. v1 has no such thing: nothing of the VM is
                 swapped out (memory.swappiness 0), which the kernel breaks only rather than end a process
    shares       v2: memory.low; v1: the soft limit. What the VM is entitled to when all want all of theirs:
                 who has more is reclaimed from first. Only where shares differ; else all are alike anyway
    limit        v2: memory.max, and memory.high a little below, where it is slowed down first; v1: the hard
                 limit. One that is below what the VM has now is approached, so that lowering it ends nobody;
                 where nothing can be swapped out its balloon has a while to get there
    swap         v2: memory.swap.max; v1: memory.swappiness, or the limit of memory and swap together

Sources: Documentation/admin-guide/cgroup-v2.rst (memory.min, .low, .high, .max, .swap.max, .events),
Documentation/admin-guide/cgroup-v1/memory.rst (soft limit, memsw, swappiness, oom_control).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from innkeeper.agent import sysfs
from innkeeper.agent.context import Context, Running
from innkeeper.drivers.cgroup import Group
from innkeeper.drivers.cgroupvalues import (
    SWAPPINESS_DEFAULT,
    MemoryHigh,
    MemoryLow,
    MemoryMax,
    MemoryMin,
    Setting,
    SwapMax,
    Swappiness,
    Version,
)
from innkeeper.errors import EngineError
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, InstanceStatus
from innkeeper.spec.overcommit import QEMU_BYTES, beside_ram_bytes, kept_bytes
from innkeeper.spec.qos import MemoryQos, MemoryReport, share_number
from innkeeper.spec.sharing import Claim, entitlements
from innkeeper.units import MiB, human_size

# What QEMU takes beside the guest's RAM, as placement reckons (control/placement.py).
_QEMU_PART: Final = 256
# How much a limit that is below what the VM has is lowered in one look (2 s): the kernel swaps that out
# while we wait for it.
STEP_BYTES: Final = 64 * MiB
# Below the limit by so much a VM is slowed down and reclaimed from: what a busy guest touches in the time
# that takes.
HIGH_PART: Final = 32
# What a balloon has to bring a VM below its limit where it cannot be swapped out: a guest boots within
# that, and an idle one gives 1/8 of its memory every two seconds.
PATIENCE_S: Final = 90.0
HIGH_LEAST_BYTES: Final = 8 * MiB


@dataclass(frozen=True, slots=True)
class Now:
    """Of the group at this moment. `swap`: whether the host has any that it may use. `swappiness`: the
    host's own. `in_force`: the limit that it has. `patient`: its balloon is on the way to the limit.
    `moving`: it is handed over from one process to another. `frozen`: RAM of a moment that others share, and
    that lies in its account."""

    version: Version
    used_bytes: int | None
    swap: bool
    swappiness: int = SWAPPINESS_DEFAULT
    in_force: int | None = None
    patient: bool = False
    moving: bool = False
    frozen: int = 0


def decide(ctx: Context) -> dict[str, Sequence[Setting]]:
    """Settings of every VM that runs or is about to."""
    present = {*ctx.running, *ctx.launching}
    records = {record.uid: record for record in ctx.records.values() if record.uid in present}
    base = ctx.cgroups.bases.get("memory")
    if base is None:
        # Without a group nothing can be kept; who was promised something is told so.
        return {
            uid: (MemoryMin(0),) if record.spec.qos.memory.in_groups() else ()
            for uid, record in records.items()
        }
    host = sysfs.meminfo(sysfs.HOST_ROOT)
    low = low_bytes(records, host.get("MemTotal", 0))
    reserved = sum(reservation_of(record.spec) for record in records.values())
    ctx.cgroups.protect(reserved, max(reserved, sum(low.values())))
    bare = Now(base.version, None, host.get("SwapTotal", 0) > 0, swappiness())
    return {uid: settings(record.spec, low[uid], _now(ctx, bare, record)) for uid, record in records.items()}


def most_bytes(spec: InstanceSpec) -> int:
    """Guest RAM and QEMU; of ordinary memory."""
    ram = 0 if spec.memory.hugepages else spec.memory.size
    return ram + QEMU_BYTES + spec.memory.size // _QEMU_PART


def reservation_of(spec: InstanceSpec) -> int:
    return min(spec.qos.memory.reservation, most_bytes(spec))


def low_bytes(records: Mapping[str, InstanceRecord], total_bytes: int) -> dict[str, int]:
    """What each is entitled to of a host with so much memory, when all want all of theirs. Where all have
    the same shares, only what is reserved: nobody is to be reclaimed from before the others, nor before
    what else runs on the host."""
    specs = {uid: record.spec for uid, record in records.items()}
    alike = len({share_number(spec.qos.memory.shares) for spec in specs.values()}) < 2
    if alike:
        return {uid: reservation_of(spec) for uid, spec in specs.items()}
    claims = [claim_of(spec) for spec in specs.values()]
    capacity = max(0, total_bytes - kept_bytes(total_bytes))
    return dict(zip(specs, map(int, entitlements(claims, capacity)), strict=True))


def claim_of(spec: InstanceSpec) -> Claim:
    """Shares are per MiB that it was given."""
    qos, most = spec.qos.memory, most_bytes(spec)
    limit = most if qos.limit is None else min(most, qos.limit)
    shares = share_number(qos.shares) * max(1, spec.memory.size // MiB)
    return Claim(shares, min(reservation_of(spec), limit), limit)


def settings(spec: InstanceSpec, low: int, now: Now) -> tuple[Setting, ...]:
    """All that its group is to have, in an order in which each may be written."""
    qos, reserved = spec.qos.memory, reservation_of(spec)
    limit = limit_now(None if qos.limit is None else qos.limit + now.frozen, now)
    if now.version == 2:
        high = None if limit is None else max(0, limit - max(HIGH_LEAST_BYTES, limit // HIGH_PART))
        return (
            MemoryMin(reserved),
            MemoryLow(max(low, reserved)),
            MemoryHigh(high),
            MemoryMax(limit),
            SwapMax(_swap_bytes(qos)),
        )
    held = qos.swap == "never" or reserved > 0
    return (
        MemoryLow(max(low, reserved)),
        MemoryMax(limit),
        SwapMax(_swap_bytes(qos) if isinstance(qos.swap, int) else None, limit),
        Swappiness(0 if held else None, usual=now.swappiness),
    )


def limit_now(limit: int | None, now: Now) -> int | None:
    """The limit, or on the way to it: as far as its memory can be swapped out meanwhile, and never below
    what it has, where the kernel would end it. Without swap only the balloon can make it smaller, and has
    some time for that; then it may not grow any more, and each step down is kept. While it is handed over two
    processes have its memory, and the kernel would end one of them."""
    if now.patient or now.moving:
        return None
    if limit is None or now.used_bytes is None or now.used_bytes <= limit:
        return limit
    page = os.sysconf("SC_PAGE_SIZE")
    if now.swap:
        target = now.used_bytes - STEP_BYTES
    else:
        target = now.used_bytes + HIGH_LEAST_BYTES
        target = target if now.in_force is None else min(target, now.in_force)
    return max(limit, target // page * page)


def over_limit(spec: InstanceSpec, now: Now) -> str:
    """Why the limit is not in force yet, or empty."""
    limit = spec.qos.memory.limit
    if limit is None or now.used_bytes is None:
        return ""
    if now.moving:
        return "it is being handed over to another process, which has its memory beside it for a moment"
    if now.patient:
        return f"it is held to {human_size(limit)} once its balloon has taken what is above from its guest"
    if now.used_bytes <= limit + now.frozen:
        return ""
    how = "it is being swapped out" if now.swap else "there is no swap for it: only its balloon can give back"
    return f"it has {human_size(now.used_bytes)}, the limit is {human_size(limit)}; {how}"


def _swap_bytes(qos: MemoryQos) -> int | None:
    if qos.swap == "auto":
        return None
    return 0 if qos.swap == "never" else int(qos.swap)


def _now(ctx: Context, bare: Now, record: InstanceRecord) -> Now:
    group, running = ctx.cgroups.get(record.uid), ctx.running.get(record.uid)
    qos = record.spec.qos.memory
    if qos.limit is None or group is None:
        return bare
    held = qos.swap in ("never", 0) or (bare.version == 1 and qos.reservation > 0)
    swap = bare.swap and not held
    copies = () if running is None else _copies(ctx, record)
    return replace(
        bare,
        used_bytes=group.memory_bytes(),
        swap=swap,
        in_force=_in_force(group),
        patient=not swap and waits(record.spec, running, ctx.clock.monotonic()),
        moving=running is not None and not running.at_rest.is_set(),
        frozen=0 if running is None else frozen_bytes(record, running, copies),
    )


def _copies(ctx: Context, record: InstanceRecord) -> list[Running]:
    """Those that run and were made of it since it runs. What was its RAM before is in another's account."""
    since = ctx.statuses.get(record.uid, InstanceStatus()).started_at
    return [
        ctx.running[one.uid]
        for one in ctx.records.values()
        if one.fork is not None
        and one.fork.parent_uid == record.uid
        and one.fork.live
        and one.created_at >= since
        and one.uid in ctx.running
    ]


def frozen_bytes(record: InstanceRecord, running: Running, copies: Sequence[Running] = ()) -> int:
    """RAM of a parent or template that copies share since a moment: charged to it, and no longer what it has
    to itself; also once it has got RAM of its own, as long as a copy uses that of the moment. A copy's own
    account has none of it. In huge pages it is in nobody's."""
    if record.spec.memory.hugepages:
        return 0
    copied = record.fork is not None and record.fork.live and record.wanted.epoch <= 1
    found: dict[tuple[int, int], int] = {}
    with contextlib.suppress(EngineError, OSError):  # it has just ended
        if not copied and not running.machine.reclaimable:
            found |= running.machine.ram_backing()
    for copy in copies:
        with contextlib.suppress(EngineError, OSError):
            if copy.machine.ram_private:
                found |= copy.machine.ram_backing()
    return sum(found.values())


def _in_force(group: Group) -> int | None:
    name = "memory.max" if group.version("memory") == 2 else "memory.limit_in_bytes"
    text = (group.read("memory", name) or "").strip()
    # v1 says "no limit" with the largest number of pages there is.
    return int(text) if text.isdigit() and int(text) < 1 << 60 else None


def waits(spec: InstanceSpec, running: Running | None, now: float) -> bool:
    """Whether a limit below the VM's RAM is still to be reached by its balloon. Without swap the kernel
    would end a guest that boots, long before its driver is there."""
    limit = spec.qos.memory.limit
    ram = most_bytes(spec) - QEMU_BYTES - spec.memory.size // _QEMU_PART
    if limit is None or limit >= most_bytes(spec) or not ram or spec.qos.memory.balloon == "never":
        return False
    if running is None:
        return True
    if running.limit_waits is None or running.limit_waits[0] != limit:
        running.limit_waits = (limit, now)
    if now - running.limit_waits[1] > PATIENCE_S or (running.plan is not None and not running.plan.balloon):
        return False
    view = running.balloon
    if view is None or (view.standing == "silent" and not view.overdue):
        return True
    translated = running.plan.translated_bytes if running.plan is not None else 0
    # One that has just been moved has all of its RAM again, until its balloon is filled anew.
    above = view.left > limit - beside_ram_bytes(translated) or view.hollow
    return view.standing == "follows" and above


def swappiness(root: Path = sysfs.HOST_ROOT) -> int:
    """How readily the host swaps, which is what a group without a policy of its own does, too."""
    text = sysfs.read_text(root / "proc/sys/vm/swappiness").strip()
    return int(text) if text.isdigit() else SWAPPINESS_DEFAULT


def swapped_bytes(group: Group) -> int | None:
    """What of a group's memory is in swap; None where the kernel does not say."""
    if group.version("memory") == 2:
        text = (group.read("memory", "memory.swap.current") or "").strip()
        return int(text) if text.isdigit() else None
    return group.counts("memory", "memory.stat").get("swap")


def report(ctx: Context, record: InstanceRecord) -> MemoryReport:
    """What it is promised, what it has, and what of that is in force."""
    qos, status = record.spec.qos.memory, ctx.statuses.get(record.uid, InstanceStatus())
    group = ctx.cgroups.get(record.uid) if record.uid in ctx.running else None
    known = MemoryReport(
        shares=share_number(qos.shares), reservation=qos.reservation, limit=qos.limit, swap=qos.swap
    )
    if record.uid not in ctx.running:
        return known
    version = group.version("memory") if group else None
    why = status.qos.get("memory", "")
    if group is not None and version is not None and not why:
        swap = sysfs.meminfo(sysfs.HOST_ROOT).get("SwapTotal", 0) > 0
        above = ctx.cgroups.protected_above()
        promised = sum(reservation_of(one.spec) for one in ctx.records.values() if one.uid in ctx.running)
        if qos.reservation and above is not None and above < promised:
            why = f"the control groups above all VMs keep only {human_size(above)} (their memory.min)"
        else:
            why = over_limit(record.spec, _now(ctx, Now(version, None, swap), record))
    held = qos.reservation > 0 and not why
    return known.model_copy(
        update={
            "used": group.memory_bytes() if group else None,
            "swapped": swapped_bytes(group) if group else None,
            "kept_by": ("min" if version == 2 else "not-swapped") if held and version else "",
            "not_in_force": why,
        }
    )


def why_killed(group: Group) -> str:
    """Of a VM that was ended by SIGKILL: what the kernel's account of its group says, or empty. Asked before
    the group is removed."""
    if group.version("memory") == 2:
        events = group.counts("memory", "memory.events")
        # Of a host without memory it counts the end alone (mm/memcontrol.c, MEMCG_OOM).
        killed, reached = events.get("oom_kill", 0), events.get("oom", 0)
    else:
        killed = group.counts("memory", "memory.oom_control").get("oom_kill", 0)
        text = (group.read("memory", "memory.failcnt") or "").strip()
        reached = int(text) if text.isdigit() else 0
    if not killed:
        return ""
    if reached:
        return (
            "the kernel ended it at its memory limit; raise qos.memory.limit, let it swap"
            " (qos.memory.swap) or let its balloon work"
        )
    return (
        "the kernel ended it: the host, or a control group above all VMs, was out of memory;"
        " reserve memory for it (qos.memory.reservation), or give out less"
    )
