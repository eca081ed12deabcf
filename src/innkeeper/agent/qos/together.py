"""All VMs together against the host's own processes.

The VMs of a daemon are one group to the kernel's scheduler. Each vCPU that is busy counts in it like one
process, which is what it would be without groups; idle VMs count for nothing. Where something is reserved,
the group weighs as much as it takes to keep that against whatever runs beside it.
"""

from __future__ import annotations

import os
from typing import Final

from innkeeper.agent.context import Context
from innkeeper.drivers.cgroupvalues import WEIGHT_MAX, clamp_weight

WEIGHT_OF_A_PROCESS: Final = 100
# Less of a core than this is a guest's timer ticks and QEMU's own work: an idle one takes a third of a
# percent.
BUSY_CORES: Final = 0.03


class Together:
    """Knows who is busy by looking again."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float]] = {}  # uid -> when, and CPU seconds by then

    def look(self, ctx: Context, now: float) -> int:
        """The weight they should have now."""
        before, self._before = self._before, {}
        busy, reserved = 0, 0
        cpus = len(os.sched_getaffinity(0))
        for record in list(ctx.records.values()):
            if record.uid not in ctx.running:
                continue
            reserved += record.spec.qos.cpu.reservation
            group = ctx.cgroups.get(record.uid)
            used = group.cpu_s() if group else None
            if used is None:
                continue
            self._before[record.uid] = now, used
            then, was = before.get(record.uid, (now, 0.0))
            # One that was never looked at has just been started, and boots.
            if now <= then or used - was > BUSY_CORES * (now - then):
                busy += min(record.spec.cpu.count, cpus)
        return weight_together(busy, reserved / 1000, cpus, ctx.cgroups.beside(cpus, busy) if reserved else 0)


def weight_together(busy: int, reserved_cores: float, cpus: int, beside: int) -> int:
    """`busy` vCPUs; `beside` is the weight of everybody else."""
    part = min(reserved_cores / cpus, 1.0)
    floor = beside * part / (1 - part) if part < 1 else WEIGHT_MAX
    return clamp_weight(max(WEIGHT_OF_A_PROCESS * max(busy, 1), floor))
