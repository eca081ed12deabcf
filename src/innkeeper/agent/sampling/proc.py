"""What the kernel tells of processes, threads and the host, parsed. Pure: bytes in, values out.

Sources: proc_pid_stat(5), proc_pid_statm(5), proc_pid_smaps(5), Documentation/scheduler/sched-stats.rst
(schedstat), Documentation/accounting/psi.rst, Documentation/admin-guide/cgroup-v1/cpuacct.rst and
cgroup-v2.rst (cpu.stat). Sizes are bytes, times seconds unless a name says otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

ThreadKind = Literal["vcpu", "iothread", "emulator"]
# QEMU's names with `debug-threads=on` (accel/tcg, accel/kvm, iothread.c); the kernel keeps 15 bytes.
_VCPU_NAME: Final = re.compile(r"CPU (\d+)/(?:KVM|TCG)")
_MONITOR_THREAD: Final = "mon_iothread"  # part of the emulator: it serves QMP


@dataclass(frozen=True, slots=True)
class Stat:
    """/proc/PID/stat: of the whole process, threads that ended included."""

    cpu_s: float
    minor_faults: int
    major_faults: int
    threads: int
    started_ticks: int
    processor: int
    blocked_s: float  # waited for a block device; 0 without kernel.task_delayacct


@dataclass(frozen=True, slots=True)
class Schedule:
    """Of one thread. `wait_ns`: it could have run and no CPU was free."""

    run_ns: int
    wait_ns: int | None


@dataclass(frozen=True, slots=True)
class Thread:
    kind: ThreadKind
    name: str  # "vcpu0", "disks", "emulator"
    tid: int
    index: int = -1  # of a vCPU


@dataclass(frozen=True, slots=True)
class Footprint:
    """Where a process's memory really is (smaps_rollup)."""

    rss_bytes: int
    pss_bytes: int
    private_bytes: int
    shared_bytes: int
    swapped_bytes: int
    huge_bytes: int
    merged_bytes: int  # by KSM


def parse_stat(data: bytes) -> Stat:
    # After the command's name, which may contain anything: state is field 3.
    fields = data[data.rindex(b")") + 2 :].split()
    return Stat(
        cpu_s=(int(fields[11]) + int(fields[12])) / TICKS_PER_S,
        minor_faults=int(fields[7]),
        major_faults=int(fields[9]),
        threads=int(fields[17]),
        started_ticks=int(fields[19]),
        processor=int(fields[36]),
        blocked_s=int(fields[39]) / TICKS_PER_S,
    )


def parse_statm(data: bytes) -> int:
    """Resident bytes."""
    return int(data.split(None, 2)[1]) * PAGE_BYTES


def parse_schedstat(data: bytes) -> Schedule | None:
    """None where the kernel keeps no such account: then it is all zeros, of a thread that has run."""
    run, wait, slices = data.split()
    return Schedule(int(run), int(wait)) if slices != b"0" else None


def parse_footprint(data: bytes) -> Footprint:
    found: dict[bytes, int] = {}
    for line in data.splitlines():
        key, _, rest = line.partition(b":")
        words = rest.split()
        if len(words) == 2 and words[1] == b"kB":
            found[key] = int(words[0]) * 1024

    def total(*names: bytes) -> int:
        return sum(found.get(name, 0) for name in names)

    return Footprint(
        rss_bytes=total(b"Rss", b"Private_Hugetlb", b"Shared_Hugetlb"),
        pss_bytes=total(b"Pss", b"Private_Hugetlb"),
        private_bytes=total(b"Private_Clean", b"Private_Dirty", b"Private_Hugetlb"),
        shared_bytes=total(b"Shared_Clean", b"Shared_Dirty", b"Shared_Hugetlb"),
        swapped_bytes=total(b"Swap"),
        huge_bytes=total(
            b"AnonHugePages", b"ShmemPmdMapped", b"FilePmdMapped", b"Private_Hugetlb", b"Shared_Hugetlb"
        ),
        merged_bytes=total(b"KSM"),
    )


def parse_numa_maps(data: bytes) -> dict[int, int]:
    """Bytes on each node. Each line has its own page size: huge pages count as what they are. Pages of files
    on disk, such as QEMU's program, its libraries and a guest's kernel, are everybody's, and lie where the
    first who read them ran: those it did not write to (`anon`) are not counted."""
    found: dict[int, int] = {}
    for line in data.splitlines():
        if b" file=/" in line and b" file=/memfd:" not in line and b" anon=" not in line:
            continue
        pages: list[tuple[int, int]] = []
        page_bytes = PAGE_BYTES
        for word in line.split()[2:]:
            key, _, value = word.partition(b"=")
            if key == b"kernelpagesize_kB":
                page_bytes = int(value) * 1024
            elif key[:1] == b"N" and key[1:].isdigit():
                pages.append((int(key[1:]), int(value)))
        for node, count in pages:
            found[node] = found.get(node, 0) + count * page_bytes
    return found


def parse_pressure(data: bytes) -> float:
    """Seconds in which at least one task waited ("some") since the boot."""
    match = re.search(rb"^some .*total=(\d+)", data, re.M)
    return int(match[1]) / 1e6 if match else 0.0


def parse_cpu_stat(data: bytes) -> float | None:
    """Seconds throttled, added up over CPUs: `throttled_usec` of v2, `throttled_time` (ns) of v1; None: no
    such account, or it never had a limit."""
    for line in data.splitlines():
        key, _, value = line.partition(b" ")
        if key == b"nr_periods" and value.strip() == b"0":
            return None
        if key == b"throttled_usec":
            return int(value) / 1e6
        if key == b"throttled_time":
            return int(value) / 1e9
    return None


def parse_host_cpus(data: bytes) -> dict[int, tuple[float, float, float]]:
    """/proc/stat: busy, waiting for I/O and stolen seconds of each CPU since the boot (proc_stat(5)). The
    time of guests is part of `user` already."""
    found = {}
    for line in data.splitlines():
        name, *values = line.split()
        if name[:3] == b"cpu" and name[3:].isdigit():
            user, nice, system, _, iowait, irq, softirq, steal = (int(value) for value in values[:8])
            busy = user + nice + system + irq + softirq
            found[int(name[3:])] = (busy / TICKS_PER_S, iowait / TICKS_PER_S, steal / TICKS_PER_S)
    return found


def parse_net_dev(data: bytes) -> dict[str, tuple[int, int, int, int]]:
    """/proc/net/dev: rx bytes, rx packets, tx bytes, tx packets of each interface."""
    found = {}
    for line in data.decode(errors="replace").splitlines()[2:]:
        name, _, rest = line.partition(":")
        values = rest.split()
        if len(values) >= 10:
            found[name.strip()] = (int(values[0]), int(values[1]), int(values[8]), int(values[9]))
    return found


def roles(
    names: Mapping[int, str], pid: int, vcpus: Iterable[int] = (), iothreads: Mapping[str, int] | None = None
) -> tuple[Thread, ...]:
    """Which threads are worth an account of their own. `names` are all threads with their names, `vcpus` and
    `iothreads` what QEMU itself says; without that (it does not answer) the names decide. What is left -
    worker threads, the monitor - belongs to the emulator as a whole."""
    told = list(vcpus)
    found: dict[int, Thread] = {pid: Thread("emulator", "emulator", pid)}
    for tid, name in names.items():
        named = _VCPU_NAME.match(name)
        if tid in told:
            # One thread may run them all (TCG without multi-threading): then it counts as the first.
            found[tid] = Thread("vcpu", f"vcpu{told.index(tid)}", tid, told.index(tid))
        elif named:  # plugged in since QEMU was asked
            found[tid] = Thread("vcpu", f"vcpu{named[1]}", tid, int(named[1]))
        elif iothreads is None and name.startswith("IO ") and name[3:] != _MONITOR_THREAD:
            found[tid] = Thread("iothread", name[3:], tid)
    for title, tid in (iothreads or {}).items():
        if tid in names:
            found[tid] = Thread("iothread", title, tid)
    order = {"vcpu": 0, "emulator": 1, "iothread": 2}
    return tuple(sorted(found.values(), key=lambda one: (order[one.kind], one.index, one.name)))
