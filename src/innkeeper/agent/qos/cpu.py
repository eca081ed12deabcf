"""CPU time: every VM's part of the host, as weight and quota of its control group.

Weights are proportional to what each VM is entitled to when all are busy (spec/sharing.py) of what they have
together beside the host's own processes (agent/qos/together.py), so that among busy VMs each gets at least
that, reservations included, and what idle ones leave goes to the others. What a busy one is owed nevertheless
raises its weight (spec/fairness.py). A quota is set only where there is a limit: nothing is wasted
otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

from innkeeper.agent.context import Context
from innkeeper.drivers.cgroupvalues import (
    PERIOD_DEFAULT_US,
    PERIOD_MIN_US,
    WEIGHT_MAX,
    CpuLimit,
    CpuWeight,
    Setting,
    clamp_weight,
)
from innkeeper.spec.instance import InstanceRecord, InstanceSpec
from innkeeper.spec.qos import CpuQos, share_number
from innkeeper.spec.sharing import Claim, entitlements, kept_millicores

# Of one core: a tenth of the largest there is, so that a hundredth of a core is still ten.
WEIGHT_OF_A_CORE: Final = 1000


def decide(ctx: Context) -> dict[str, Sequence[Setting]]:
    """Settings of every VM that runs or is about to; and what each is entitled to, into the context."""
    present = {*ctx.running, *ctx.launching}
    records = {record.uid: record for record in ctx.records.values() if record.uid in present}
    capacity = capacity_cores(len(os.sched_getaffinity(0)))
    ctx.cpu_entitled = entitled_cores(records, capacity)
    entitled = entitled_cores(records, min(capacity, ctx.cpu_cores))
    weights = weights_of(entitled, ctx.cpu_factors)
    kept = ctx.cgroups.why_not("cpu") == ""
    return {
        uid: (CpuWeight(weights[uid]), quota_of(record.spec.qos.cpu.limit))
        if kept or record.spec.qos.cpu != CpuQos()
        else ()
        for uid, record in records.items()
    }


def entitled_cores(records: Mapping[str, InstanceRecord], capacity: float) -> dict[str, float]:
    """Of each, in cores, when all are busy and have `capacity` cores together. A template stands still and
    takes part with nothing; it counts when it runs on."""
    uids = [uid for uid, record in records.items() if record.wanted.template is None]
    claims = [claim_of(records[uid].spec) for uid in uids]
    found = dict.fromkeys(records, 0.0)
    return found | dict(zip(uids, entitlements(claims, capacity), strict=True))


def capacity_cores(cpus: int) -> float:
    return max(cpus * 1000 - kept_millicores(cpus), 0) / 1000


def claim_of(spec: InstanceSpec) -> Claim:
    """Without a limit it can use no more than its vCPUs."""
    qos, most = spec.qos.cpu, float(spec.cpu.count)
    if qos.limit is not None:
        most = min(most, qos.limit / 1000)
    return Claim(share_number(qos.shares) * spec.cpu.count, qos.reservation / 1000, most)


def weights_of(entitled: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, int]:
    """In proportion, some of them raised or lowered by a factor, and as fine as the kernel's range allows."""
    wanted = {uid: cores * factors.get(uid, 1.0) for uid, cores in entitled.items()}
    largest = max(wanted.values(), default=0.0)
    scale = min(WEIGHT_OF_A_CORE, WEIGHT_MAX / largest) if largest else 0.0
    return {uid: clamp_weight(cores * scale) for uid, cores in wanted.items()}


def quota_of(limit_millicores: int | None) -> CpuLimit:
    """In the kernel's usual period; a tiny limit needs a longer one, since a quota has a least length."""
    if limit_millicores is None:
        return CpuLimit(None)
    period = max(PERIOD_DEFAULT_US, -(-PERIOD_MIN_US * 1000 // limit_millicores))
    return CpuLimit(limit_millicores * period // 1000, period)
