"""What cgroups, block devices and the host's memory management tell, parsed. Pure: bytes in, values out.

Sources: Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst (memory.stat),
Documentation/admin-guide/iostats.rst (diskstats), proc_pid_io(5), proc_vmstat(5).
"""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

# diskstats counts in sectors of 512 bytes, whatever the device's own are.
SECTOR_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of a process that really went from or to storage, past the host's page cache."""

    read_bytes: int
    write_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """One block device of the host, since the boot. `busy_s`: at least one request was under way."""

    read_bytes: int
    write_bytes: int
    ops: int
    busy_s: float


@dataclass(frozen=True, slots=True)
class Paging:
    """Pages of the whole host since the boot: swapped in, and read back soon after they were evicted."""

    swapped_in: int
    refaults: int


def parse_refaults(data: bytes) -> int | None:
    """Pages of the group that were read back soon after they had been evicted for want of memory. None: this
    kernel does not count them. Before 5.9 there was one number, since then anonymous and file pages apart."""
    found = _numbers(data)
    kinds = [value for key, value in found.items() if key.startswith(b"workingset_refault")]
    return sum(kinds) if kinds else None


def parse_io(data: bytes) -> Storage | None:
    """/proc/PID/io; None: a kernel without CONFIG_TASK_IO_ACCOUNTING has no such lines."""
    found = _numbers(data.replace(b":", b""))
    if b"read_bytes" not in found or b"write_bytes" not in found:
        return None
    # What was dropped again from the page cache never reached the storage.
    written = found[b"write_bytes"] - found.get(b"cancelled_write_bytes", 0)
    return Storage(found[b"read_bytes"], max(0, written))


def parse_vmstat(data: bytes) -> Paging:
    found = _numbers(data)
    refaults = sum(value for key, value in found.items() if key.startswith(b"workingset_refault"))
    return Paging(found.get(b"pswpin", 0), refaults)


def parse_diskstats(data: bytes, wanted: Container[str]) -> dict[str, DeviceSample]:
    found = {}
    for line in data.splitlines():
        fields = line.split()
        if len(fields) >= 14 and (name := os.fsdecode(fields[2])) in wanted:
            reads, read, writes, written, busy_ms = (int(fields[at]) for at in (3, 5, 7, 9, 12))
            found[name] = DeviceSample(
                read * SECTOR_BYTES, written * SECTOR_BYTES, reads + writes, busy_ms / 1000
            )
    return found


def _numbers(data: bytes) -> dict[bytes, int]:
    found = {}
    for line in data.splitlines():
        key, _, value = line.partition(b" ")
        if value.strip().isdigit():
            found[key] = int(value)
    return found
