"""All VMs together against the host's own processes.

The VMs of a daemon are one group to the kernel's scheduler. Each vCPU that is busy counts in it like one
process, which is what it would be without groups; idle VMs count for nothing. What is reserved comes first:
of the rest of the host VMs and processes get their parts as ever, and what is kept for the host
(spec/sharing.py) is always left to it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Final

from innkeeper.agent.context import Context
from innkeeper.agent.qos.cpu import capacity_cores
from innkeeper.drivers.cgroupvalues import clamp_weight

WEIGHT_OF_A_PROCESS: Final = 100
# Less of a core than this is a guest's timer ticks and QEMU's own work: an idle one takes a third of a
# percent.
BUSY_CORES: Final = 0.03
# Steps of a core: every one changes the weights of all VMs.
STEPS: Final = 20


@dataclass(frozen=True, slots=True)
class Standing:
    """Of all VMs: their weight, and the cores they have then to share while they are busy."""

    weight: int
    cores: float


class Together:
    """Knows who is busy by looking again."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float]] = {}  # uid -> when, and CPU seconds by then
        self.busy: set[str] = set()  # uids

    def look(self, ctx: Context, now: float) -> Standing:
        """What they should have now."""
        before, self._before, self.busy = self._before, {}, set()
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
                self.busy.add(record.uid)
        return standing(busy, reserved / 1000, cpus, ctx.cgroups.beside(cpus, busy) if reserved else 0)


def standing(busy: int, reserved: float, cpus: int, beside: int) -> Standing:
    """Of `busy` vCPUs with so many cores `reserved` in all; `beside` is the weight of everybody else."""
    most = capacity_cores(cpus)
    if not reserved or not beside or not most:
        return Standing(clamp_weight(WEIGHT_OF_A_PROCESS * max(busy, 1)), most)
    reserved = min(reserved, most)
    ours = WEIGHT_OF_A_PROCESS * max(busy - reserved, 0)
    cores = min(reserved + (cpus - reserved) * ours / (ours + beside), most)
    stepped = max(reserved, math.floor(cores * STEPS) / STEPS)
    return Standing(clamp_weight(beside * cores / (cpus - cores)), stepped)
