"""From two readings of counters to what happened between them. Pure.

A counter that went back was begun anew (a guest that rebooted, a process that took over) unless it went
around; a process that is another one gives no rate at all, since its counters say nothing about the time
between the two readings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from innkeeper.agent.sampling.proc import Thread
from innkeeper.engine.base import Counters

# Below that the resolution of the counters (10 ms) is most of what one would see.
MIN_INTERVAL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class ThreadSample:
    thread: Thread
    run_s: float
    wait_s: float | None


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


@dataclass(frozen=True, slots=True)
class ThreadRate:
    thread: Thread
    used: float  # of a CPU, 0 to 1
    waited: float | None  # share of the time in which it could have run and no CPU was free


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
    waited: float | None  # of all vCPUs together, seconds a second
    throttled: float | None
    minor_faults: float  # a second
    major_faults: float
    threads: tuple[ThreadRate, ...]
    pressure: PressureRate | None


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
    waits = [one.waited for one in threads if one.thread.kind == "vcpu" and one.waited is not None]
    throttled = None
    if before.throttled_s is not None and after.throttled_s is not None:
        throttled = advance(before.throttled_s, after.throttled_s) / took
    return ProcessRates(
        interval_s=took,
        used=used,
        emulator=used - known,
        waited=sum(waits) if waits else None,
        throttled=throttled,
        minor_faults=advance(before.minor_faults, after.minor_faults) / took,
        major_faults=advance(before.major_faults, after.major_faults) / took,
        threads=threads,
        pressure=pressure_rate(before.pressure, after.pressure, took),
    )


def _thread_rate(before: ThreadSample, after: ThreadSample, took: float) -> ThreadRate:
    """No thread can use more than one CPU: what is over comes from reading clock and counter apart."""
    waited = None
    if before.wait_s is not None and after.wait_s is not None:
        waited = min(1.0, advance(before.wait_s, after.wait_s) / took)
    return ThreadRate(after.thread, min(1.0, advance(before.run_s, after.run_s) / took), waited)


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


def disk_rates(before: Counters, after: Counters, took: float) -> DiskRates | None:
    if took < MIN_INTERVAL_S:
        return None
    earlier = {disk.name: disk for disk in before.disks}
    pairs = [(earlier[disk.name], disk) for disk in after.disks if disk.name in earlier]
    return DiskRates(
        read_bytes=sum(advance(old.read_bytes, new.read_bytes) for old, new in pairs) / took,
        write_bytes=sum(advance(old.write_bytes, new.write_bytes) for old, new in pairs) / took,
        read_ops=sum(advance(old.read_ops, new.read_ops) for old, new in pairs) / took,
        write_ops=sum(advance(old.write_ops, new.write_ops) for old, new in pairs) / took,
        flush_ops=sum(advance(old.flush_ops, new.flush_ops) for old, new in pairs) / took,
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


@dataclass(frozen=True, slots=True)
class HostSample:
    at: float
    cpus: Mapping[int, tuple[float, float, float]]  # busy, iowait and stolen seconds of each
    pressure: Pressure | None


@dataclass(frozen=True, slots=True)
class HostRates:
    interval_s: float
    used: float  # CPUs
    iowait: float
    stolen: float  # by whoever runs this host as a VM
    cpus: tuple[float, ...]
    pressure: PressureRate | None


def host_rates(before: HostSample, after: HostSample) -> HostRates | None:
    took = after.at - before.at
    if took < MIN_INTERVAL_S:
        return None
    shares = [
        tuple(min(1.0, advance(old, new) / took) for old, new in zip(before.cpus[cpu], now, strict=True))
        for cpu, now in sorted(after.cpus.items())
        if cpu in before.cpus
    ]
    return HostRates(
        interval_s=took,
        used=sum(one[0] for one in shares),
        iowait=sum(one[1] for one in shares),
        stolen=sum(one[2] for one in shares),
        cpus=tuple(one[0] for one in shares),
        pressure=pressure_rate(before.pressure, after.pressure, took),
    )
