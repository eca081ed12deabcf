"""A map of all of a guest's memory: which of its pages are there, and whose they are."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import compress
from typing import Final

from innkeeper.agent.inspect.access import HostPages, backing_of, huge_bytes
from innkeeper.agent.inspect.address import slot_of
from innkeeper.agent.inspect.cpus import registers_of, summary
from innkeeper.drivers import procfs
from innkeeper.drivers.procfs import PAGE, MemoryMapping
from innkeeper.engine.inspection import AddressSpace, Inspection, Region
from innkeeper.errors import Unsupported
from innkeeper.inspect import pages
from innkeeper.inspect.pages import State
from innkeeper.spec.inspection import CpuSummary, MemoryMap, MemoryTotals, PageRun, Picture, Slot

PICTURE_CELLS: Final = 512
_PRESENT: Final = (State.OWN, State.HUGE, State.SHARED, State.PRIVATE, State.KSM)


@dataclass(frozen=True)
class Extent:
    """A piece of a block of RAM that lies in one piece in guest-physical memory, with the holes that devices
    and firmware cut into it: the host has memory for those as well."""

    name: str
    start: int
    end: int
    host: int

    @property
    def pages(self) -> int:
        return (self.end - self.start) // PAGE


@dataclass(frozen=True)
class _Looked:
    """What was found: a letter a page, and its NUMA node or `_NOWHERE`."""

    extent: Extent
    letters: bytes
    nodes: bytes | None

    def bytes_by_node(self, start: int, end: int) -> dict[str, int]:
        """Of the guest-physical addresses from `start` up to `end`."""
        first = self.extent.start
        found = Counter((self.nodes or b"")[(start - first) // PAGE : (end - first) // PAGE])
        return {str(node): found[node] * PAGE for node in sorted(found) if node != _NOWHERE}


_NOWHERE: Final = 255  # Linux has up to 1024 nodes, machines a few


def extents(regions: Iterable[Region]) -> list[Extent]:
    """Regions of the same block whose addresses go on as their places in the block do."""
    found: list[Extent] = []
    for region in regions:
        last = found[-1] if found else None
        if last and last.name == region.name and region.start - last.start == region.host - last.host:
            found[-1] = Extent(last.name, last.start, region.end, last.host)
        else:
            found.append(Extent(region.name, region.start, region.end, region.host))
    return found


@dataclass(frozen=True)
class Answers:
    """What QEMU said, before the kernel is asked."""

    space: AddressSpace
    balloon: int | None
    cpus: list[CpuSummary]


async def ask(vm: Inspection) -> Answers:
    """Raises EngineError when QEMU does not answer."""
    try:
        cpus = [summary(one) for one in await registers_of(vm)]
    except Unsupported:
        cpus = []  # no x86: its memory can be mapped all the same
    return Answers(await vm.address_space(), await vm.balloon_bytes(), cpus)


def look(
    name: str, answers: Answers, pid: int, others: Mapping[str, int], *, numa: bool, begun: float
) -> MemoryMap:
    """The map, by what the kernel says: no call of it waits for the guest. `others` are the processes of
    other VMs, by name. Raises OSError when the process has ended or may not be looked into."""
    host = HostPages(pid)
    looked = [_look_at(pid, host, extent, numa) for extent in extents(answers.space.ram)]
    found: Counter[State] = Counter()
    for one in looked:
        found.update(pages.counts(one.letters))
    size = sum(one.extent.pages for one in looked) * PAGE
    cell = pages.cell_bytes(size, PICTURE_CELLS)
    nodes = _sum_nodes(looked) if numa else None
    return MemoryMap(
        name=name,
        cpus=answers.cpus,
        slots=_slots(answers.space, looked, nodes is not None),
        totals=_totals(size, found, answers.balloon, answers.space),
        shared_with=_shared_with(pid, host, answers.space, others),
        nodes=nodes,
        nodes_note="" if nodes is not None or not numa else "this kernel does not tell where pages are",
        cell_bytes=cell,
        pictures=[
            Picture(first=hex(one.extent.start), cells=pages.picture(one.letters, cell // PAGE))
            for one in looked
        ],
        runs=[run for one in looked for run in _runs(one)],
        took_ms=round((time.monotonic() - begun) * 1000, 2),
    )


def _look_at(pid: int, host: HostPages, extent: Extent, numa: bool) -> _Looked:
    count = extent.pages
    mapping = host.counted(extent.host)
    if mapping is None:  # it went since QEMU said so
        return _Looked(extent, bytes([ord(State.UNTOUCHED.letter)]) * count, None)
    with procfs.opened(pid, "pagemap") as fd:
        entries = b"".join(procfs.pagemap(fd, extent.host, count))
        tops = pages.top_bytes(entries)
        huge = _huge(fd, mapping, extent.host, count)
    more = (huge, _in_file(pid, mapping, extent.host, count), _merged(mapping, entries, tops))
    letters = pages.states(pages.combine(tops, *(one for one in more if one)), backing_of(mapping))
    return _Looked(extent, letters, _nodes(pid, extent.host, tops) if numa else None)


def _huge(fd: int, mapping: MemoryMapping, address: int, count: int) -> bytes:
    if mapping.numbers.get("KernelPageSize", PAGE) > PAGE:
        return bytes([pages.HUGE]) * count
    ranges = procfs.huge_ranges(fd, address, count) if huge_bytes(mapping) else None
    return pages.marked(count, ranges, pages.HUGE) if ranges else b""


def _in_file(pid: int, mapping: MemoryMapping, address: int, count: int) -> bytes:
    """What the memory file has, which is more than what this process has in its page tables."""
    fd = procfs.open_mapped(pid, mapping) if mapping.inode else None
    if fd is None:
        return b""
    offset = mapping.offset + address - mapping.start
    try:
        resident = procfs.file_residency(fd, offset, count).translate(_RESIDENT)
        data = pages.marked(count, procfs.file_data(fd, offset, count), pages.DATA)
    finally:
        os.close(fd)
    return pages.combine(resident, data)


# Only the lowest bit of what mincore says has a meaning.
_RESIDENT: Final = bytes(pages.RESIDENT if value & 1 else 0 for value in range(256))


def _merged(mapping: MemoryMapping, entries: bytes, tops: bytes) -> bytes:
    """Which pages KSM has merged. It takes the flags of each frame, so it is only asked where smaps has
    some (or, before Linux 6.7, does not say) and the mapping is one that may be merged."""
    if not mapping.numbers.get("KSM", 1) or "mg" not in mapping.flags:
        return b""
    candidates = [page for page, top in enumerate(tops) if top & pages.PRESENT and not top & pages.FILE]
    words = (int.from_bytes(entries[page * 8 : page * 8 + 8], "little") for page in candidates)
    frames = [word & procfs.PFN_BITS for word in words]
    known = procfs.frame_flags(frames) if all(frames) else None
    if known is None:
        return b""
    found = bytearray(len(tops))
    for page in compress(candidates, (flags & procfs.KPF_KSM for flags in known)):
        found[page] = pages.KSM
    return bytes(found)


_THERE: Final = re.compile(rb"[\x80-\xff]+")  # pages.PRESENT is the highest bit


def _nodes(pid: int, address: int, tops: bytes) -> bytes | None:
    parts, at = [], 0
    for match in _THERE.finditer(tops):
        first, last = match.span()
        answer = procfs.page_nodes(pid, range(address + first * PAGE, address + last * PAGE, PAGE))
        if answer is None:
            return None
        words = answer.tobytes()
        # The lowest byte of each word; all ones of a negative one, which no node is.
        parts += [bytes([_NOWHERE]) * (first - at), pages.combine(words[0::4], words[3::4])]
        at = last
    return b"".join([*parts, bytes([_NOWHERE]) * (len(tops) - at)])


def _sum_nodes(looked: Iterable[_Looked]) -> dict[str, int] | None:
    total: Counter[str] = Counter()
    for one in looked:
        if one.nodes is None:
            return None
        total.update(one.bytes_by_node(one.extent.start, one.extent.end))
    return {node: total[node] for node in sorted(total, key=int)}


def _slots(space: AddressSpace, looked: Iterable[_Looked], numa: bool) -> list[Slot]:
    found = []
    for region in space.regions:
        if region.is_memory:
            inside = [one for one in looked if one.extent.start <= region.start < one.extent.end]
            told = inside[0].bytes_by_node(region.start, region.end) if numa and inside else None
            found.append(slot_of(region, space).model_copy(update={"nodes": told}))
    return found


def _totals(size: int, found: Mapping[State, int], balloon: int | None, space: AddressSpace) -> MemoryTotals:
    whole = sum(space.ram_bytes.values()) or size
    return MemoryTotals(
        bytes=size,
        present=sum(found[state] for state in _PRESENT) * PAGE,
        ballooned=None if balloon is None else max(0, whole - balloon),
        **pages.bytes_by_state(found),
    )


def _runs(one: _Looked) -> Iterable[PageRun]:
    for run in pages.runs(one.letters):
        first = hex(one.extent.start + run.first * PAGE)
        yield PageRun.model_construct(first=first, bytes=run.pages * PAGE, state=run.state.value)


def _shared_with(pid: int, host: HostPages, space: AddressSpace, others: Mapping[str, int]) -> list[str]:
    """Other VMs that map the same memory file: forks of one moment."""
    files = set()
    for region in space.ram:
        mapping = host.mapping(region.host)
        if mapping is not None and mapping.inode and mapping.private:
            files.add((mapping.device, mapping.inode))
    if not files:
        return []
    return sorted(name for name, other in others.items() if other != pid and files & _files_of(other))


def _files_of(pid: int) -> set[tuple[str, int]]:
    try:
        return {(one.device, one.inode) for one in procfs.mappings(pid) if one.inode}
    except OSError:
        return set()  # it has ended
