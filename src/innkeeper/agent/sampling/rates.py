"""From two readings of counters to what happened between them. Pure.

A counter that went back was begun anew (a guest that rebooted, a process that took over) unless it went
around; a process that is another one gives no rate at all, since its counters say nothing about the time
between the two readings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from innkeeper.agent.sampling.accounts import Storage
from innkeeper.agent.sampling.proc import Thread
from innkeeper.engine.base import Counters, DiskCounters

# Below that the resolution of the counters (10 ms) is most of what one would see.
MIN_INTERVAL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class ThreadSample:
    thread: Thread
    run_s: float
    wait_s: float | None
    blocked_s: float | None = None  # waited for a block device of the host; of vCPUs, where that is counted


@dataclass(frozen=True, slots=True)
class Pressure:
    """Seconds in which something waited for it, since the boot."""

    cpu_s: float
    memory_s: float
    io_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment. `at`: seconds of a clock that never goes back."""

    at: float
    pid: int
    started_ticks: int
    cpu_s: float
    minor_faults: int
    major_faults: int
    rss_bytes: int
    threads: tuple[ThreadSample, ...]
    throttled_s: float | None = None
    pressure: Pressure | None = None
    refaults: int | None = None
    storage: Storage | None = None


@dataclass(frozen=True, slots=True)
class ThreadRate:
    thread: Thread
    used: float  # of a CPU, 0 to 1
    waited: float | None  # share of the time in which it could have run and no CPU was free
    blocked: float | None = None  # share of the time in which it waited for a block device


@dataclass(frozen=True, slots=True)
class PressureRate:
    """Share of the time in which something waited for it, 0 to 1."""

    cpu: float
    memory: float
    io: float


@dataclass(frozen=True, slots=True)
class ProcessRates:
    interval_s: float
    used: float  # CPUs: 1.0 is one of them all the time
    emulator: float  # of these, by QEMU beside vCPUs and iothreads
    waited: float | None  # of all vCPUs together, seconds a second; time it was throttled is part of it
    throttled: float | None  # seconds a second, over all CPUs
    minor_faults: float  # a second
    major_faults: float
    threads: tuple[ThreadRate, ...]
    pressure: PressureRate | None
    waited_qemu: float | None = None  # as `waited`, of QEMU's main loop and its iothreads
    blocked: float | None = None  # of all vCPUs: for pages that had to be read back
    refaults: float | None = None  # pages a second
    storage: StorageRate | None = None


@dataclass(frozen=True, slots=True)
class StorageRate:
    """Bytes a second that really went from or to storage."""

    read_bytes: float
    write_bytes: float


@dataclass(frozen=True, slots=True)
class NetworkCounters:
    """From the guest's point of view: rx is what it received."""

    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int


def advance(before: float, after: float, bits: int = 64) -> float:
    """How far a counter went. Gone back, it went around if it was near its end, else it was begun anew; one
    that only fell a little (the kernel's iowait does, proc_stat(5)) stood still."""
    if after >= before:
        return after - before
    end = 1 << bits
    if before > end * 0.75 and after < end * 0.25:
        return after + (end - before)
    return after if after < before / 2 else 0.0


def demand(used: float, waited: float) -> float:
    """What a thread would use of a host with nobody else: one that has to wait for a CPU is not idle. Without
    the waiting the same work and the same sleep take less time, so a thread that never sleeps comes out as 1,
    and one that mostly sleeps as little more than what it used."""
    return min(1.0, used / max(1.0 - waited, used, 0.01))


def process_rates(before: Sample, after: Sample) -> ProcessRates | None:
    """None when they are not of one process, or too near to each other."""
    took = after.at - before.at
    same = (before.pid, before.started_ticks) == (after.pid, after.started_ticks)
    if not same or took < MIN_INTERVAL_S:
        return None
    earlier = {one.thread.tid: one for one in before.threads}
    threads = tuple(
        _thread_rate(earlier[one.thread.tid], one, took) for one in after.threads if one.thread.tid in earlier
    )
    known = sum(one.used for one in threads if one.thread.kind != "emulator")
    used = max(advance(before.cpu_s, after.cpu_s) / took, known)
    vcpus = [one for one in threads if one.thread.kind == "vcpu"]
    return ProcessRates(
        interval_s=took,
        used=used,
        emulator=used - known,
        waited=_sum(one.waited for one in vcpus),
        throttled=_rate(before.throttled_s, after.throttled_s, took),
        minor_faults=advance(before.minor_faults, after.minor_faults) / took,
        major_faults=advance(before.major_faults, after.major_faults) / took,
        threads=threads,
        pressure=pressure_rate(before.pressure, after.pressure, took),
        waited_qemu=_sum(one.waited for one in threads if one.thread.kind != "vcpu"),
        blocked=_sum(one.blocked for one in vcpus),
        refaults=_rate(before.refaults, after.refaults, took),
        storage=_storage_rate(before.storage, after.storage, took),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """Of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _rate(before: float | None, after: float | None, took: float) -> float | None:
    return None if before is None or after is None else advance(before, after) / took


def _storage_rate(before: Storage | None, after: Storage | None, took: float) -> StorageRate | None:
    if before is None or after is None:
        return None
    return StorageRate(
        advance(before.read_bytes, after.read_bytes) / took,
        advance(before.write_bytes, after.write_bytes) / took,
    )


def _thread_rate(before: ThreadSample, after: ThreadSample, took: float) -> ThreadRate:
    """No thread can use more than one CPU: what is over comes from reading clock and counter apart."""
    waited, blocked = (
        None if share is None else min(1.0, share)
        for share in (
            _rate(before.wait_s, after.wait_s, took),
            _rate(before.blocked_s, after.blocked_s, took),
        )
    )
    return ThreadRate(after.thread, min(1.0, advance(before.run_s, after.run_s) / took), waited, blocked)


def pressure_rate(before: Pressure | None, after: Pressure | None, took: float) -> PressureRate | None:
    if before is None or after is None or took <= 0:
        return None
    return PressureRate(
        cpu=min(1.0, advance(before.cpu_s, after.cpu_s) / took),
        memory=min(1.0, advance(before.memory_s, after.memory_s) / took),
        io=min(1.0, advance(before.io_s, after.io_s) / took),
    )


@dataclass(frozen=True, slots=True)
class DiskRates:
    """A second, of all disks together."""

    read_bytes: float
    write_bytes: float
    read_ops: float
    write_ops: float
    flush_ops: float
    each: tuple[OneDiskRate, ...] = ()
    read_s: float | None = None  # how long a request took on average; None: there was none
    write_s: float | None = None
    flush_s: float | None = None


@dataclass(frozen=True, slots=True)
class OneDiskRate:
    """`under_way`: how many requests were, on average."""

    name: str
    read_bytes: float
    write_bytes: float
    read_ops: float
    write_ops: float
    flush_ops: float
    under_way: float

    @property
    def bytes(self) -> float:
        return self.read_bytes + self.write_bytes

    @property
    def ops(self) -> float:
        return self.read_ops + self.write_ops + self.flush_ops


def disk_rates(before: Counters, after: Counters, took: float) -> DiskRates | None:
    if took < MIN_INTERVAL_S:
        return None
    earlier = {disk.name: disk for disk in before.disks}
    pairs = [(earlier[disk.name], disk) for disk in after.disks if disk.name in earlier]

    def went(name: str) -> float:
        return sum(advance(getattr(old, name), getattr(new, name)) for old, new in pairs)

    def each_took(ops: str, time: str) -> float | None:
        many = went(ops)
        return went(time) / 1e9 / many if many else None

    return DiskRates(
        read_bytes=went("read_bytes") / took,
        write_bytes=went("write_bytes") / took,
        read_ops=went("read_ops") / took,
        write_ops=went("write_ops") / took,
        flush_ops=went("flush_ops") / took,
        each=tuple(_one_disk(old, new, took) for old, new in pairs),
        read_s=each_took("read_ops", "read_ns"),
        write_s=each_took("write_ops", "write_ns"),
        flush_s=each_took("flush_ops", "flush_ns"),
    )


def _one_disk(old: DiskCounters, new: DiskCounters, took: float) -> OneDiskRate:
    def went(*names: str) -> float:
        return sum(advance(getattr(old, name), getattr(new, name)) for name in names) / took

    return OneDiskRate(
        new.name,
        read_bytes=went("read_bytes"),
        write_bytes=went("write_bytes"),
        read_ops=went("read_ops"),
        write_ops=went("write_ops"),
        flush_ops=went("flush_ops"),
        under_way=went("read_ns", "write_ns", "flush_ns") / 1e9,
    )


def kvm_rates(before: Counters, after: Counters, took: float) -> dict[str, float] | None:
    """Each of KVM's counters a second, over all vCPUs; None without KVM."""
    if before.kvm is None or after.kvm is None or took < MIN_INTERVAL_S:
        return None
    old: Mapping[str, int] = before.kvm
    return {name: advance(old[name], value) / took for name, value in after.kvm.items() if name in old}


@dataclass(frozen=True, slots=True)
class NetworkRates:
    rx_bytes: float
    tx_bytes: float
    rx_packets: float
    tx_packets: float


def network_rates(before: NetworkCounters, after: NetworkCounters, took: float) -> NetworkRates | None:
    if took < MIN_INTERVAL_S:
        return None
    return NetworkRates(
        rx_bytes=advance(before.rx_bytes, after.rx_bytes) / took,
        tx_bytes=advance(before.tx_bytes, after.tx_bytes) / took,
        rx_packets=advance(before.rx_packets, after.rx_packets) / took,
        tx_packets=advance(before.tx_packets, after.tx_packets) / took,
    )
