"""Which of the host's CPUs a VM's threads run on (sched_setaffinity(2)).

QEMU as a whole is held to the CPUs of the nodes its RAM lies on; with NUMA nodes of its own, each of the
guest's vCPUs to those of its node. A vCPU that is plugged in later has what its process has.
"""

from __future__ import annotations

import contextlib
import os

from innkeeper.engine.base import LaunchPlan
from innkeeper.engine.qemu.qmp import Monitor


def hold_process(pid: int, plan: LaunchPlan) -> None:
    """At once after the start: threads have what the one has that starts them."""
    _hold(pid, plan.memory.host_cpus)


async def hold_vcpus(monitor: Monitor, plan: LaunchPlan) -> None:
    if not any(node.host_cpus for node in plan.memory.nodes):
        return
    for vcpu in await monitor.execute("query-cpus-fast"):
        for node in plan.memory.nodes:
            if vcpu["cpu-index"] in node.cpus:
                _hold(vcpu["thread-id"], node.host_cpus)


def _hold(thread: int, cpus: tuple[int, ...]) -> None:
    """CPUs that are offline meanwhile, or not for us (cpuset), are no reason for the VM not to run."""
    if cpus:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(thread, cpus)
