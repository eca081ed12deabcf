"""The memory of a running VM, and what the host has behind each page of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from innkeeper.drivers import procfs
from innkeeper.drivers.procfs import PAGE, MemoryMapping
from innkeeper.engine.inspection import AddressSpace, Inspection
from innkeeper.inspect import pages
from innkeeper.inspect.paging import PagingState, Read, Unreadable, Walk, walk
from innkeeper.spec.inspection import HostPlace

_HUGE_BYTES: Final = 2 << 20  # a transparent huge page of x86 and of arm64 with 4 KiB pages
_HIDDEN: Final = "the kernel shows page frames to root only"


class GuestMemory:
    """Guest-physical memory read where it lies, in the process. A context: it holds a descriptor."""

    def __init__(self, pid: int, space: AddressSpace, proc: Path = procfs.PROC) -> None:
        self._space = space
        self._path = proc / str(pid) / "mem"
        self._fd = -1

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, address: int, size: int) -> bytes:
        """Raises Unreadable where there is no memory, OSError where this process may not be read."""
        region = self._space.at(address)
        if region is None or not region.is_memory or address + size > region.end:
            raise Unreadable(f"{address:#x}")
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        data = os.pread(self._fd, size, region.host + address - region.start)
        if len(data) != size:
            raise Unreadable(f"{address:#x}")
        return data


class _Missing(Exception):
    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size


async def walked(
    state: PagingState, address: int, memory: GuestMemory, space: AddressSpace, vm: Inspection
) -> Walk:
    """The walk on a live guest. Where the process cannot be read (ptrace_scope of Yama), QEMU is asked:
    the walk is pure, so it is simply done again with each answer."""
    try:
        return walk(state, address, memory.read)
    except OSError:
        pass
    known: dict[int, bytes] = {}
    read = _remembered(known, space)
    while True:
        try:
            return walk(state, address, read)
        except _Missing as missing:
            known[missing.address] = await vm.read_physical(missing.address, missing.size)


def _remembered(known: dict[int, bytes], space: AddressSpace) -> Read:
    def read(address: int, size: int) -> bytes:
        region = space.at(address)
        if region is None or not region.is_memory:
            raise Unreadable(f"{address:#x}")
        if address not in known:
            raise _Missing(address, size)
        return known[address]

    return read


def backing_of(mapping: MemoryMapping) -> pages.Backing:
    if mapping.inode == 0:
        return "anonymous"
    return "private-file" if mapping.private else "shared-file"


class HostPages:
    """What is behind the addresses of one process, page by page."""

    def __init__(self, pid: int, proc: Path = procfs.PROC) -> None:
        self._pid, self._proc = pid, proc
        self._mappings: list[MemoryMapping] = []

    def mapping(self, address: int) -> MemoryMapping | None:
        """Without its numbers: to count those, the kernel goes through all pages of it."""
        if not self._mappings:
            self._mappings = procfs.mappings(self._pid, self._proc)
        return next((one for one in self._mappings if one.start <= address < one.end), None)

    def counted(self, address: int) -> MemoryMapping | None:
        return procfs.mapping_at(self._pid, address, self._proc)

    def at(self, address: int) -> HostPlace | None:
        """None when nothing is mapped there. Raises OSError when the kernel does not let us look."""
        mapping = self.mapping(address)
        if mapping is None:
            return None
        entry = procfs.page_entry(self._pid, address, self._proc)
        in_file, size, huge = 0, PAGE, "no"
        if entry.present:
            size, huge = self._size(address)
        elif mapping.inode and not entry.swapped:
            in_file, size = self._in_file(mapping, address)
            huge = "hugetlb" if size > PAGE else "no"
        flags = (entry.present and pages.PRESENT) | (entry.swapped and pages.SWAPPED) | in_file
        flags |= (entry.file and pages.FILE) | (huge in ("transparent", "hugetlb") and pages.HUGE)
        if entry.frame is not None and not entry.file:
            known = procfs.frame_flags([entry.frame], self._proc)
            flags |= pages.KSM if known and known[0] & procfs.KPF_KSM else 0
        physical = None if entry.frame is None else hex(entry.frame * PAGE + address % PAGE)
        nodes = procfs.page_nodes(self._pid, [address & -PAGE])
        return HostPlace(
            address=hex(address),
            state=pages.classify(flags, backing_of(mapping)).value,
            mapped=entry.present,
            swapped=entry.swapped,
            file=entry.file,
            exclusive=entry.exclusive,
            soft_dirty=entry.soft_dirty,
            physical=physical,
            hidden=_HIDDEN if entry.present and physical is None else "",
            page_bytes=size,
            huge=huge,
            node=nodes[0] if nodes and nodes[0] >= 0 else None,
        )

    def _size(self, address: int) -> tuple[int, str]:
        """Of a page that is there, and of which kind it is."""
        with procfs.opened(self._pid, "pagemap", self._proc) as fd:
            ranges = procfs.huge_ranges(fd, address & -PAGE, 1)
        if ranges == []:
            return PAGE, "no"
        counted = self.counted(address)
        kernel_page = counted.numbers.get("KernelPageSize", PAGE) if counted else PAGE
        if kernel_page > PAGE:
            return kernel_page, "hugetlb"
        if ranges is None:  # before Linux 6.7 only the sum is told
            return PAGE, "unknown" if counted and huge_bytes(counted) else "no"
        return _HUGE_BYTES, "transparent"

    def _in_file(self, mapping: MemoryMapping, address: int) -> tuple[int, int]:
        """What the file has of a page that is not in the page tables, and the size of its pages."""
        fd = procfs.open_mapped(self._pid, mapping, self._proc)
        if fd is None:
            return 0, PAGE
        offset = mapping.offset + (address & -PAGE) - mapping.start
        try:
            size = procfs.huge_page_bytes(fd) or PAGE
            resident = procfs.file_residency(fd, offset, 1)[0] & 1
            data = any(True for _ in procfs.file_data(fd, offset, 1))
        finally:
            os.close(fd)
        return (resident and pages.RESIDENT) | (data and pages.DATA), size


def huge_bytes(mapping: MemoryMapping) -> int:
    """What transparent huge pages map of it."""
    names = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")
    return sum(mapping.numbers.get(name, 0) for name in names)
