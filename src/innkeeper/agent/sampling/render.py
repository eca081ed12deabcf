"""A tracker's knowledge as the answer of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from innkeeper.agent.sampling.host import pressure_metrics
from innkeeper.agent.sampling.proc import Footprint
from innkeeper.agent.sampling.rates import ProcessRates
from innkeeper.agent.sampling.tracker import Tracker, local_share
from innkeeper.spec.instance import InstanceRecord, InstanceStatus
from innkeeper.spec.metrics import (
    CpuMetrics,
    DiskMetrics,
    FaultMetrics,
    InstanceMetrics,
    MemoryMetrics,
    NetworkMetrics,
    NumaMetrics,
    StorageMetrics,
    ThreadMetrics,
)


def instance_metrics(
    record: InstanceRecord,
    status: InstanceStatus,
    tracker: Tracker | None,
    now: float,
    node_of_cpu: Mapping[int, int],
) -> InstanceMetrics:
    """`now`: of the clock of the readings. Of one that does not run only what it was given is known."""
    running = tracker is not None and tracker.sample is not None
    rates = tracker.rates if tracker else None
    return InstanceMetrics(
        name=record.name,
        uid=record.uid,
        state=status.state.value,
        accelerator=status.accelerator,
        pid=status.pid,
        at=tracker.sampled_at if tracker and running else 0.0,
        interval_s=rates.interval_s if rates else None,
        cpu=_cpu(record, tracker),
        memory=_memory(record, tracker, now),
        faults=_faults(rates) if rates else None,
        disk=_disk(tracker, now) if tracker else None,
        storage=_storage(rates) if rates else None,
        network=_network(tracker, now) if tracker else None,
        kvm=tracker.kvm if tracker else None,
        pressure=pressure_metrics(rates.pressure if rates else None),
        numa=_numa(tracker, node_of_cpu) if tracker else None,
        totals=dict(tracker.totals) if tracker else {},
    )


def _cpu(record: InstanceRecord, tracker: Tracker | None) -> CpuMetrics:
    rates = tracker.rates if tracker else None
    if rates is None:
        return CpuMetrics(given=record.spec.cpu.count)
    return CpuMetrics(
        given=record.spec.cpu.count,
        used=rates.used,
        emulator=rates.emulator,
        waited=rates.waited,
        throttled=rates.throttled,
        waited_qemu=rates.waited_qemu,
        threads=tuple(
            ThreadMetrics(
                name=one.thread.name,
                kind=one.thread.kind,
                tid=one.thread.tid,
                used=one.used,
                waited=one.waited,
            )
            for one in rates.threads
        ),
    )


def _faults(rates: ProcessRates) -> FaultMetrics:
    return FaultMetrics(
        minor=rates.minor_faults, major=rates.major_faults, refaults=rates.refaults, blocked=rates.blocked
    )


def _storage(rates: ProcessRates) -> StorageMetrics | None:
    found = rates.storage
    if found is None:
        return None
    return StorageMetrics(read_bytes=found.read_bytes, write_bytes=found.write_bytes)


def _memory(record: InstanceRecord, tracker: Tracker | None, now: float) -> MemoryMetrics:
    given = record.spec.memory.size
    if tracker is None or tracker.sample is None:
        return MemoryMetrics(given=given)
    found = tracker.footprint
    known = MemoryMetrics(given=given, resident=tracker.sample.rss_bytes, **_balloon(tracker))
    if found is None or tracker.walked_at is None:
        return known
    return known.model_copy(update=_walked(found, now - tracker.walked_at))


def _balloon(tracker: Tracker) -> dict[str, Any]:
    view = tracker.balloon
    if view is None:
        return {"balloon": tracker.counters.balloon_bytes if tracker.counters else None}
    return {
        "balloon": view.left,
        "balloon_state": view.standing,
        "balloon_target": view.target,
        "guest_available": view.available,
        "working_set": view.working_set,
        "guest_swap_in": view.swap_in,
    }


def _walked(found: Footprint, age_s: float) -> dict[str, Any]:
    return {
        "proportional": found.pss_bytes,
        "private": found.private_bytes,
        "shared": found.shared_bytes,
        "swapped": found.swapped_bytes,
        "huge": found.huge_bytes,
        "merged": found.merged_bytes,
        "age_s": round(age_s, 3),
    }


def _disk(tracker: Tracker, now: float) -> DiskMetrics | None:
    found = tracker.disk
    if found is None:
        return None
    return DiskMetrics(
        read_bytes=found.read_bytes,
        write_bytes=found.write_bytes,
        read_ops=found.read_ops,
        write_ops=found.write_ops,
        flush_ops=found.flush_ops,
        read_s=found.read_s,
        write_s=found.write_s,
        flush_s=found.flush_s,
        under_way=sum(one.under_way for one in found.each),
        age_s=round(now - tracker.counted_at, 3),
    )


def _network(tracker: Tracker, now: float) -> NetworkMetrics | None:
    found = tracker.network
    if found is None:
        return None
    return NetworkMetrics(
        rx_bytes=found.rx_bytes,
        tx_bytes=found.tx_bytes,
        rx_packets=found.rx_packets,
        tx_packets=found.tx_packets,
        source="host" if tracker.taps else "guest",
        age_s=round(now - tracker.traffic_at, 3),
    )


def _numa(tracker: Tracker, node_of_cpu: Mapping[int, int]) -> NumaMetrics | None:
    """On a host with one node everything is local, and nobody has to look."""
    if len(set(node_of_cpu.values())) == 1 and tracker.sample is not None:
        return NumaMetrics(local=1.0, nodes={next(iter(node_of_cpu.values())): tracker.sample.rss_bytes})
    if tracker.placement is None:
        return None
    share = local_share(tracker.placement, node_of_cpu)
    return None if share is None else NumaMetrics(local=share, nodes=dict(tracker.placement.nodes))
