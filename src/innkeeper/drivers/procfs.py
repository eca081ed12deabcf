"""What the kernel tells of a process: its mappings, pages, threads, and the memory itself.

Thin readers of /proc/PID, one function each; what the answers mean is decided elsewhere
(`inspect/pages.py`). Every function takes the `proc` it reads below, where that can be a directory of a
test. Sources: proc(5), Documentation/filesystems/proc.rst, Documentation/admin-guide/mm/pagemap.rst.

A process that ended, or that we may not look into, raises OSError: the caller knows what to say.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import mmap
import os
import platform
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
PAGE: Final = mmap.PAGESIZE
_CHUNK_PAGES: Final = 1 << 18  # of pagemap at once: 2 MiB for 1 GiB of guest memory

PFN_BITS: Final = (1 << 55) - 1
_MAP_LINE: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) (\S+) (\d+)\s*(.*)")
_KIB: Final = re.compile(r"(\w+): +(\d+) kB")

# KPF_* of include/uapi/linux/kernel-page-flags.h
KPF_HUGE: Final = 1 << 17
KPF_KSM: Final = 1 << 21
KPF_THP: Final = 1 << 22


@dataclass(frozen=True)
class MemoryMapping:
    """One line of /proc/PID/maps and, where asked for, the numbers below it in smaps (bytes)."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    path: str
    numbers: Mapping[str, int]
    flags: tuple[str, ...] = ()

    @property
    def private(self) -> bool:
        """Written pages are copied and stay this process's own."""
        return self.permissions[3] == "p"


def mappings(pid: int, proc: Path = PROC) -> list[MemoryMapping]:
    with (proc / str(pid) / "maps").open(errors="replace") as lines:
        return [one for line in lines if (one := _mapping(line))]


def mapping_at(pid: int, address: int, proc: Path = PROC) -> MemoryMapping | None:
    """The mapping around an address, with its numbers of smaps: sizes of pages, huge pages, KSM. The kernel
    counts as it is read, so this looks no further than that mapping."""
    found: MemoryMapping | None = None
    numbers: dict[str, int] = {}
    with (proc / str(pid) / "smaps").open(errors="replace") as lines:
        for line in lines:
            head = _mapping(line)
            if head is not None:
                if found is not None:
                    break
                if head.start <= address < head.end:
                    found = head
            elif found is not None:
                pair = _KIB.match(line)
                if pair:
                    numbers[pair[1]] = int(pair[2]) * 1024
                elif line.startswith("VmFlags:"):
                    return _numbered(found, numbers, tuple(line.split()[1:]))
    return _numbered(found, numbers, ()) if found else None


def _mapping(line: str) -> MemoryMapping | None:
    match = _MAP_LINE.match(line)
    if match is None:
        return None
    start, end, permissions, offset, device, inode, path = match.groups()
    return MemoryMapping(
        int(start, 16), int(end, 16), permissions, int(offset, 16), device, int(inode), path.rstrip(), {}
    )


def _numbered(found: MemoryMapping, numbers: Mapping[str, int], flags: tuple[str, ...]) -> MemoryMapping:
    return MemoryMapping(
        found.start, found.end, found.permissions, found.offset, found.device, found.inode, found.path,
        numbers, flags,
    )  # fmt: skip


def command_line(pid: int, proc: Path = PROC) -> list[str]:
    """Its arguments, program included; empty for one that has ended."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [word.decode(errors="surrogateescape") for word in words[:-1]]


# -- its memory ------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(pid: int, name: str, proc: Path = PROC) -> Iterator[int]:
    """A descriptor of /proc/PID/NAME, to read."""
    fd = os.open(proc / str(pid) / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class PageEntry:
    """An entry of /proc/PID/pagemap. `frame` is the number of the host's page frame; None when there is
    none, or when the kernel does not tell us (it takes CAP_SYS_ADMIN)."""

    present: bool
    swapped: bool
    file: bool  # a page of a file, or of shared memory
    soft_dirty: bool
    exclusive: bool  # nobody else maps it
    frame: int | None


def page_entry(pid: int, address: int, proc: Path = PROC) -> PageEntry:
    with opened(pid, "pagemap", proc) as fd:
        data = os.pread(fd, 8, address // PAGE * 8)
    if len(data) != 8:
        return PageEntry(False, False, False, False, False, None)
    value = int.from_bytes(data, "little")
    frame = value & PFN_BITS
    present = bool(value >> 63 & 1)
    return PageEntry(
        present=present,
        swapped=bool(value >> 62 & 1),
        file=bool(value >> 61 & 1),
        soft_dirty=bool(value >> 55 & 1),
        exclusive=bool(value >> 56 & 1),
        frame=frame if present and frame else None,
    )


def pagemap(fd: int, address: int, pages: int) -> Iterator[bytes]:
    """Entries of 8 bytes for so many pages from an address on, in large pieces; `fd` is of
    /proc/PID/pagemap."""
    at, end = address // PAGE * 8, (address // PAGE + pages) * 8
    while at < end:
        data = os.pread(fd, min(end - at, _CHUNK_PAGES * 8), at)
        if not data:
            data = bytes(min(end - at, _CHUNK_PAGES * 8))  # beyond the address space
        at += len(data)
        yield data


# struct pm_scan_arg and PAGE_IS_HUGE of include/uapi/linux/fs.h, from Linux 6.7 on
_SCAN_ARG: Final = struct.Struct("=12Q")
_PAGEMAP_SCAN: Final = 0xC060_6610  # _IOWR('f', 16, struct pm_scan_arg)
_PAGE_IS_HUGE: Final = 1 << 6
_SCAN_REGIONS: Final = 512


def huge_ranges(fd: int, address: int, pages: int) -> list[tuple[int, int]] | None:
    """Half-open ranges of page numbers, counted from `address`, that huge pages map (transparent or
    hugetlb); None when this kernel cannot tell. `fd` is of /proc/PID/pagemap."""
    regions = array.array("Q", bytes(24 * _SCAN_REGIONS))
    place, count = regions.buffer_info()
    start, end = address, address + pages * PAGE
    found: list[tuple[int, int]] = []
    while start < end:
        request = bytearray(_SCAN_ARG.pack(
            _SCAN_ARG.size, 0, start, end, 0, place, count // 3, 0, 0, _PAGE_IS_HUGE, 0, _PAGE_IS_HUGE
        ))  # fmt: skip
        try:
            filled = fcntl.ioctl(fd, _PAGEMAP_SCAN, request)
        except OSError:
            return None
        for index in range(filled):
            first, last = regions[index * 3], regions[index * 3 + 1]
            found.append(((first - address) // PAGE, (last - address) // PAGE))
        walked = _SCAN_ARG.unpack(request)[4]
        if walked <= start:
            break
        start = walked
    return found


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_FAILED: Final = ctypes.c_void_p(-1).value
_MAP_PRIVATE, _MAP_NORESERVE = 0x02, 0x4000


def file_residency(fd: int, offset: int, pages: int) -> bytes:
    """Per page of a file 1 when it is in memory, else 0 (mincore(2)); nothing is brought in. Of a file of
    huge pages, whose mincore knows only what is mapped, all or nothing."""
    if huge_page_bytes(fd):
        return bytes([int(_is_whole(fd))]) * pages
    size = pages * PAGE
    place = _libc.mmap(None, size, mmap.PROT_READ, _MAP_PRIVATE | _MAP_NORESERVE, fd, offset)
    if place == _FAILED:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        vector = ctypes.create_string_buffer(pages)
        if _libc.mincore(place, size, vector) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
        return vector.raw
    finally:
        _libc.munmap(place, size)


def file_data(fd: int, offset: int, pages: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges of pages of a file, counted from `offset`, that hold something, in memory or swapped
    (lseek(2), SEEK_DATA). Moves the descriptor's position. Of a file of huge pages, which has no such
    knowledge, all or nothing."""
    if huge_page_bytes(fd):
        if _is_whole(fd):
            yield 0, pages
        return
    at, end = offset, offset + pages * PAGE
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError:
            return  # no data after this
        if start < end:
            yield (start - offset) // PAGE, (min(at, end) - offset + PAGE - 1) // PAGE


def huge_page_bytes(fd: int) -> int:
    """The size of the pages of a file on hugetlbfs, 0 of any other: no other has blocks beyond a page."""
    size = os.fstatvfs(fd).f_bsize
    return size if size > PAGE else 0


def _is_whole(fd: int) -> bool:
    """Whether every byte of a file has memory."""
    info = os.fstat(fd)
    return info.st_blocks * 512 >= info.st_size > 0


def open_mapped(pid: int, mapping: MemoryMapping, proc: Path = PROC) -> int | None:
    """A descriptor of our own of the file behind a mapping: among those the process has open, or None."""
    major, minor = (int(part, 16) for part in mapping.device.split(":"))
    for entry in (proc / str(pid) / "fd").iterdir():
        try:
            info = entry.stat()
            if info.st_ino == mapping.inode and info.st_dev == os.makedev(major, minor):
                return os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
    return None


# -- nodes and frames ------------------------------------------------------------------------------

# move_pages(2) has no wrapper in libc; arch/*/include/.../unistd.h
_SYS_MOVE_PAGES: Final = {"x86_64": 279, "aarch64": 239, "riscv64": 239}
_NODES_AT_ONCE: Final = 1 << 16


def page_nodes(pid: int, addresses: Sequence[int]) -> array.array[int] | None:
    """The NUMA node of each page, negative where there is none (an errno, as -2 for a page that is not
    mapped); None when the kernel does not tell (no NUMA, or not our process). Moves nothing."""
    number = _SYS_MOVE_PAGES.get(platform.machine())
    if number is None:
        return None
    nodes = array.array("i")
    for at in range(0, len(addresses), _NODES_AT_ONCE):
        piece = array.array("Q", addresses[at : at + _NODES_AT_ONCE])
        status = array.array("i", bytes(4 * len(piece)))
        answer = _libc.syscall(
            ctypes.c_long(number),
            ctypes.c_int(pid),
            ctypes.c_ulong(len(piece)),
            ctypes.c_void_p(piece.buffer_info()[0]),
            None,
            ctypes.c_void_p(status.buffer_info()[0]),
            ctypes.c_int(0),
        )
        if answer != 0:
            return None
        nodes += status
    return nodes


def frame_flags(frames: Sequence[int], proc: Path = PROC) -> list[int] | None:
    """Flags of page frames (KPF_*); None when we may not see them."""
    try:
        fd = os.open(proc / "kpageflags", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return [int.from_bytes(os.pread(fd, 8, frame * 8), "little") for frame in frames]
    except OSError:
        return None
    finally:
        os.close(fd)


# -- its threads -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Thread:
    """Of /proc/PID/task/TID/stat and schedstat; times in seconds. `waited_s`: ready to run, with every CPU
    taken by somebody else."""

    name: str
    state: str  # R running, S sleeping, D in the kernel, T stopped, ...
    user_s: float
    system_s: float
    cpu: int  # it ran on last
    ran_s: float
    waited_s: float
    slices: int


def thread(pid: int, tid: int, proc: Path = PROC) -> Thread:
    place = proc / str(pid) / "task" / str(tid)
    head, _, rest = (place / "stat").read_text(errors="replace").rpartition(") ")
    fields = rest.split()  # from field 3 on, proc_pid_stat(5)
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    try:
        ran, waited, slices = (int(word) for word in (place / "schedstat").read_text().split())
    except (OSError, ValueError):  # a kernel without CONFIG_SCHED_INFO
        ran = waited = slices = 0
    return Thread(
        name=head.partition("(")[2],
        state=fields[0],
        user_s=int(fields[11]) * tick_s,
        system_s=int(fields[12]) * tick_s,
        cpu=int(fields[36]),
        ran_s=ran / 1e9,
        waited_s=waited / 1e9,
        slices=slices,
    )
