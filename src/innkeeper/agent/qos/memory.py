"""Memory: what every VM's control group keeps for it, what it may take, and how much may be swapped out.

    reservation  v2: memory.min, and the same of all VMs together. v1 has no such thing: nothing of the VM is
                 swapped out (memory.swappiness 0), which the kernel breaks only rather than end a process
    shares       v2: memory.low; v1: the soft limit. What the VM is entitled to when all want all of theirs:
                 who has more is reclaimed from first. Only where shares differ; else all are alike anyway
    limit        v2: memory.max, and memory.high a little below, where it is slowed down first; v1: the hard
                 limit. One that is below what the VM has now is approached, so that lowering it ends nobody
    swap         v2: memory.swap.max; v1: memory.swappiness, or the limit of memory and swap together

Sources: Documentation/admin-guide/cgroup-v2.rst (memory.min, .low, .high, .max, .swap.max, .events),
Documentation/admin-guide/cgroup-v1/memory.rst (soft limit, memsw, swappiness, oom_control).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from innkeeper.agent import sysfs
from innkeeper.agent.context import Context
from innkeeper.drivers.cgroup import Group
from innkeeper.drivers.cgroupvalues import (
    MemoryHigh,
    MemoryLow,
    MemoryMax,
    MemoryMin,
    Setting,
    SwapMax,
    Swappiness,
    Version,
)
from innkeeper.spec.instance import InstanceRecord, InstanceSpec
from innkeeper.spec.overcommit import kept_bytes
from innkeeper.spec.qos import MemoryQos, share_number
from innkeeper.spec.sharing import Claim, entitlements
from innkeeper.units import MiB, human_size

# What QEMU takes beside the guest's RAM, as placement reckons (control/placement.py).
_QEMU_BYTES: Final = 64 * MiB
_QEMU_PART: Final = 256
# How much a limit that is below what the VM has is lowered in one look (2 s): the kernel swaps that out
# while we wait for it.
STEP_BYTES: Final = 64 * MiB
# Below the limit by so much a VM is slowed down and reclaimed from: what a busy guest touches in the time
# that takes.
HIGH_PART: Final = 32
HIGH_LEAST_BYTES: Final = 8 * MiB


@dataclass(frozen=True, slots=True)
class Now:
    """Of the group at this moment. `swap`: whether the host has any."""

    version: Version
    used_bytes: int | None
    swap: bool


def decide(ctx: Context) -> dict[str, Sequence[Setting]]:
    """Settings of every VM that runs or is about to."""
    present = {*ctx.running, *ctx.launching}
    records = {record.uid: record for record in ctx.records.values() if record.uid in present}
    base = ctx.cgroups.bases.get("memory")
    if base is None:
        # Without a group nothing can be kept; who was promised something is told so.
        return {
            uid: (MemoryMin(0),) if needs_group(record.spec.qos.memory) else ()
            for uid, record in records.items()
        }
    host = sysfs.meminfo(sysfs.HOST_ROOT)
    low = low_bytes(records, host.get("MemTotal", 0))
    reserved = sum(reservation_of(record.spec) for record in records.values())
    ctx.cgroups.protect(reserved, max(reserved, sum(low.values())))
    return {
        uid: settings(
            record.spec, low[uid], _now(ctx.cgroups.get(uid), base.version, host.get("SwapTotal", 0))
        )
        for uid, record in records.items()
    }


def needs_group(qos: MemoryQos) -> bool:
    """Whether anything of it takes a control group; the balloon does not."""
    plain = MemoryQos()
    return (qos.shares, qos.reservation, qos.limit, qos.swap) != (
        plain.shares, plain.reservation, plain.limit, plain.swap,
    )  # fmt: skip


def most_bytes(spec: InstanceSpec) -> int:
    """Guest RAM and QEMU; of ordinary memory."""
    ram = 0 if spec.memory.hugepages else spec.memory.size
    return ram + _QEMU_BYTES + spec.memory.size // _QEMU_PART


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
    limit = limit_now(qos.limit, now)
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
        Swappiness(0 if held else None),
    )


def limit_now(limit: int | None, now: Now) -> int | None:
    """The limit, or on the way to it: as far as its memory can be swapped out meanwhile, and never below
    what it has, where the kernel would end it. Without swap only the balloon can make it smaller."""
    if limit is None or now.used_bytes is None or now.used_bytes <= limit:
        return limit
    page = os.sysconf("SC_PAGE_SIZE")
    target = now.used_bytes - STEP_BYTES if now.swap else now.used_bytes + HIGH_LEAST_BYTES
    return max(limit, target // page * page)


def over_limit(spec: InstanceSpec, now: Now) -> str:
    """Why the limit is not in force yet, or empty."""
    limit = spec.qos.memory.limit
    if limit is None or now.used_bytes is None or now.used_bytes <= limit:
        return ""
    how = "it is being swapped out" if now.swap else "this host has no swap: only its balloon can give back"
    return f"it has {human_size(now.used_bytes)}, the limit is {human_size(limit)}; {how}"


def _swap_bytes(qos: MemoryQos) -> int | None:
    if qos.swap == "auto":
        return None
    return 0 if qos.swap == "never" else int(qos.swap)


def _now(group: Group | None, version: Version, swap_bytes: int) -> Now:
    return Now(version, group.memory_bytes() if group else None, swap_bytes > 0)


def why_killed(group: Group) -> str:
    """Of a VM that was ended by SIGKILL: what the kernel's account of its group says, or empty. Asked before
    the group is removed."""
    if group.version("memory") == 2:
        events = group.counts("memory", "memory.events")
        killed, reached = events.get("oom_kill", 0), events.get("max", 0) + events.get("oom", 0)
    else:
        killed = group.counts("memory", "memory.oom_control").get("oom_kill", 0)
        text = (group.read("memory", "memory.failcnt") or "").strip()
        reached = int(text) if text.isdigit() else 0
    if not killed:
        return ""
    if reached:
        return "the kernel ended it at its memory limit; raise qos.memory.limit, or let its balloon work"
    return "the kernel ended it: the host was out of memory; reserve memory for it, or give out less"
