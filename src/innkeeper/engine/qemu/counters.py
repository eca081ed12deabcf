"""Counters that only QEMU has: what the guest did with its disks, KVM's exits, which thread is which vCPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from innkeeper.engine.base import Counters, DiskCounters, ThreadIds
from innkeeper.engine.qemu.qmp import Monitor
from innkeeper.errors import EngineError

# Asked of every VM every few seconds: one that hangs must not keep us.
DEADLINE_S: Final = 2.0

_DEVICE: Final = re.compile(r"\bdisk-(.+)-dev\b")

# Of each vCPU (arch/x86/kvm/x86.c, kvm_vcpu_stats_desc). Names another kernel or architecture does not have
# are left out of the answer. Every entry into the guest ends with an exit: `exits` counts both.
KVM_NAMES: Final = (
    "exits", "halt_exits", "io_exits", "mmio_exits", "irq_exits", "irq_window_exits", "nmi_window_exits",
    "signal_exits", "request_irq_exits", "hypercalls", "insn_emulation", "irq_injections", "nmi_injections",
    "pf_taken", "pf_fixed", "tlb_flush", "halt_successful_poll", "halt_attempted_poll", "halt_wakeup",
    "preemption_reported", "preemption_other",
)  # fmt: skip


async def thread_ids(monitor: Monitor) -> ThreadIds:
    cpus = await monitor.execute("query-cpus-fast", deadline_s=DEADLINE_S)
    iothreads = await monitor.execute("query-iothreads", deadline_s=DEADLINE_S)
    try:
        ordered = sorted(cpus, key=lambda cpu: int(cpu["cpu-index"]))
        return ThreadIds(
            vcpus=tuple(int(cpu["thread-id"]) for cpu in ordered),
            iothreads={str(one["id"]): int(one["thread-id"]) for one in iothreads},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"QEMU's answer about its threads makes no sense: {error!r}") from None


async def read(monitor: Monitor, *, kvm: bool, balloon: bool) -> Counters:
    """Raises EngineError when QEMU does not answer at once. What this QEMU does not count is None; `kvm` and
    `balloon` say whether it may have them."""
    disks = _disks(await monitor.execute("query-blockstats", deadline_s=DEADLINE_S))
    return Counters(
        disks,
        kvm=await _kvm(monitor) if kvm else None,
        balloon_bytes=await _balloon(monitor) if balloon else None,
    )


def _disks(answer: Any) -> tuple[DiskCounters, ...]:
    """Those with a device of the guest; nodes of the host behind them are counted there as well."""
    try:
        return tuple(
            DiskCounters(
                name=name,
                read_bytes=int(one["stats"]["rd_bytes"]),
                write_bytes=int(one["stats"]["wr_bytes"]),
                read_ops=int(one["stats"]["rd_operations"]),
                write_ops=int(one["stats"]["wr_operations"]),
                flush_ops=int(one["stats"]["flush_operations"]),
                read_ns=int(one["stats"]["rd_total_time_ns"]),
                write_ns=int(one["stats"]["wr_total_time_ns"]),
                flush_ns=int(one["stats"]["flush_total_time_ns"]),
            )
            for name, one in ((disk_of(one), one) for one in answer)
            if name
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"QEMU's answer about its disks makes no sense: {error!r}") from None


def disk_of(entry: Mapping[str, Any]) -> str:
    """The disk's name, "" for what is none: by its device, whatever filters there are between that and the
    image (see argv.py for the names)."""
    found = _DEVICE.search(str(entry.get("qdev", "")))
    return found[1] if found else ""


async def _kvm(monitor: Monitor) -> Mapping[str, int] | None:
    """None of a QEMU before 7.1, which has no such command."""
    wanted = {"target": "vcpu", "providers": [{"provider": "kvm", "names": list(KVM_NAMES)}]}
    try:
        answer = await monitor.execute("query-stats", wanted, deadline_s=DEADLINE_S)
    except EngineError as error:
        if error.details.get("class") == "CommandNotFound":
            return None
        raise
    found: dict[str, int] = {}
    for vcpu in answer:
        for one in vcpu.get("stats", ()):
            value = one.get("value")
            if isinstance(value, int) and not isinstance(value, bool):
                found[one["name"]] = found.get(one["name"], 0) + value
    return found


async def _balloon(monitor: Monitor) -> int | None:
    try:
        return int((await monitor.execute("query-balloon", deadline_s=DEADLINE_S))["actual"])
    except (KeyError, TypeError, ValueError):
        return None
    except EngineError as error:
        if error.details.get("timeout"):
            raise
        return None  # it has none, or not one that could tell
