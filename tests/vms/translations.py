"""What the inspector says of addresses, beside what QEMU and the kernel say of the very same."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from innkeeper.agent.inspect.access import GuestMemory
from innkeeper.engine.inspection import AddressSpace, Region
from innkeeper.inspect.paging import End, PagingState, walk
from vms import monitor

PAGE = 4096
T = TypeVar("T")


def number(text: str) -> int:
    return int(text, 16)


def paging_state(summary: dict[str, Any], physical_bits: int) -> PagingState:
    """Of the registers in an answer about a vCPU."""
    registers = [number(summary[name]) for name in ("cr0", "cr3", "cr4", "efer")]
    return PagingState(*registers, physical_bits=physical_bits)


def compare_address(qemu: monitor.Monitor, found: dict[str, Any]) -> None:
    """One answer of the inspector with gva2gpa and gpa2hva."""
    assert qemu.physical(number(found["virtual"])) == number(found["physical"])
    assert qemu.host(number(found["physical"])) == number(found["host"]["address"])


def compare_frame(pid: int, found: dict[str, Any]) -> None:
    """One answer with the kernel's pagemap, which names frames to root only."""
    if os.geteuid() != 0:
        assert found["host"]["physical"] is None and "root" in found["host"]["hidden"]
        return
    frame = host_page(pid, number(found["host"]["address"])) & (1 << 55) - 1
    assert number(found["host"]["physical"]) == frame * PAGE + number(found["virtual"]) % PAGE
    # Of a huge page the entry names the first frame, and the walk any.
    entry = found["composed"]["shadow"]
    inside = (number(found["virtual"]) - number(entry["source"])) // PAGE
    assert number(entry["target"]) == (frame - inside) * PAGE


def host_page(pid: int, address: int) -> int:
    """The entry of pagemap, read by the test itself."""
    with Path(f"/proc/{pid}/pagemap").open("rb") as pagemap:
        pagemap.seek(address // PAGE * 8)
        return int.from_bytes(pagemap.read(8), "little")


def compare_all(
    qemu: monitor.Monitor, state: PagingState, pid: int, seen: dict[str, Any], *, most: int = 1 << 20
) -> None:
    """Every line of `info tlb` and the rights of `info mem`, or `most` of each by chance; and what lies
    between them. `seen` is the inspector's map of the memory of this VM, which is paused."""
    regions = [
        Region(
            number(one["first"]), number(one["last"]) + 1, one["kind"], one["name"], one["offset"],
            number(one["host_address"]),
        )
        for one in seen["slots"]
    ]  # fmt: skip
    for one in regions:
        assert (
            qemu.host(one.start) == one.host and qemu.host(one.end - 1) == one.host + one.end - 1 - one.start
        )
    with GuestMemory(pid, AddressSpace(regions, {"ram0": 0})) as memory:
        lines = qemu.tlb()
        assert len(lines) > 500, "a Linux has many pages"
        for line in _some(lines, most):
            found = walk(state, line.virtual, memory.read)
            assert found.page is not None, line
            assert found.page.base == line.physical and (found.page.bytes > PAGE) is line.has("P"), line
            names = {"X": "XD", "G": "G", "D": "D", "A": "A", "U": "US", "W": "RW"}
            flags = {letter for letter, name in names.items() if name in found.steps[-1].flags}
            assert flags == set(line.flags) - set("-PCT"), line
        ranges = qemu.ranges()
        for start, end, user, writable in _some(ranges, most):
            for address in {start, (start + end) // 2, end - 1}:
                page = walk(state, address, memory.read).page
                assert page is not None and (page.user, page.writable) == (user, writable), hex(address)
        _compare_gaps(qemu, state, memory, [(start, end) for start, end, _, _ in ranges])


def _some(values: Sequence[T], most: int) -> Iterable[T]:
    return values if len(values) <= most else random.Random(7).sample(values, most)


def _compare_gaps(
    qemu: monitor.Monitor, state: PagingState, memory: GuestMemory, ranges: list[tuple[int, int]]
) -> None:
    """Between what is mapped nothing is; at the edges, and at some places by chance."""
    chance = random.Random(7)
    gaps = [(end, start) for (_, end), (start, _) in pairwise(ranges) if end < start]
    assert gaps
    for first, last in chance.sample(gaps, min(40, len(gaps))):
        for address in (first, last - 1, chance.randrange(first, last)):
            end = walk(state, address, memory.read).end
            if 1 << 47 <= address < (1 << 64) - (1 << 47):
                assert end is End.NOT_CANONICAL
            else:
                assert end is End.NOT_PRESENT and qemu.physical(address) is None, hex(address)
