"""What the host has behind each page of guest memory, as pure functions over bytes.

One page is one byte. The kernel's answers (pagemap, mincore, PAGEMAP_SCAN, the holes of a memory file)
become bits of that byte, a table of 256 entries turns it into a state, and everything after is counting:
no loop of Python runs per page, so that a GiB takes milliseconds.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

PAGE: Final = 4096

Backing = Literal["shared-file", "private-file", "anonymous"]

# The top byte of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst): bits 63, 62, 61, 56.
PRESENT: Final = 0x80
SWAPPED: Final = 0x40
FILE: Final = 0x20
EXCLUSIVE: Final = 0x01
# Bits that pagemap leaves 0 there, for what else is known of the page.
RESIDENT: Final = 0x10  # the memory file has it in memory
DATA: Final = 0x08  # the memory file has something there, in memory or swapped
HUGE: Final = 0x04  # mapped by a huge page
KSM: Final = 0x02  # merged with an equal page

_KERNEL_BITS: Final = bytes(top & (PRESENT | SWAPPED | FILE | EXCLUSIVE) for top in range(256))


class State(enum.Enum):
    OWN = "own"  # in host memory, and nobody else's
    HUGE = "huge"  # the same, in a huge page
    SHARED = "shared"  # of the memory that forks have in common; a write will copy it
    PRIVATE = "private"  # copied from there when it was written
    KSM = "ksm"  # merged with equal pages by the kernel; a write will copy it
    SWAPPED = "swapped"
    UNTOUCHED = "untouched"  # reads as zeros and takes no memory

    @property
    def letter(self) -> str:
        return _LETTERS[self]


_LETTERS: Final[dict[State, str]] = {
    State.OWN: "o",
    State.HUGE: "h",
    State.SHARED: "s",
    State.PRIVATE: "p",
    State.KSM: "k",
    State.SWAPPED: "w",
    State.UNTOUCHED: ".",
}
_STATES: Final = {letter.encode()[0]: state for state, letter in _LETTERS.items()}


def classify(flags: int, backing: Backing) -> State:
    """What one page is, given the bits above and what its mapping is a view of."""
    if flags & PRESENT:
        if flags & KSM:
            return State.KSM
        if backing == "private-file" and flags & FILE:
            return State.SHARED
        if flags & HUGE:
            return State.HUGE
        return State.PRIVATE if backing == "private-file" else State.OWN
    if flags & SWAPPED:
        return State.SWAPPED
    if backing == "anonymous" or not flags & (RESIDENT | DATA):
        return State.UNTOUCHED
    # Not in this process's page tables, yet in the file: it is mapped when the guest next looks.
    if not flags & RESIDENT:
        return State.SWAPPED
    return State.SHARED if backing == "private-file" else State.OWN


_TABLES: Final = {
    backing: bytes(ord(_LETTERS[classify(flags, backing)]) for flags in range(256))
    for backing in ("shared-file", "private-file", "anonymous")
}


def top_bytes(pagemap: bytes) -> bytes:
    """One byte a page of entries read from /proc/PID/pagemap: little-endian words of 64 bits."""
    return pagemap[7::8].translate(_KERNEL_BITS)


def combine(first: bytes, *others: bytes) -> bytes:
    """Bitwise or of bytes of the same length; numbers are the fastest way the standard library has."""
    if not others:
        return first
    value = int.from_bytes(first, "little")
    for other in others:
        assert len(other) == len(first)
        value |= int.from_bytes(other, "little")
    return value.to_bytes(len(first), "little")


def marked(pages: int, ranges: Iterable[tuple[int, int]], bit: int) -> bytes:
    """A byte a page with `bit` where one of the half-open ranges of page numbers is, in order."""
    parts, at = [], 0
    for start, end in ranges:
        start, end = max(start, at), min(end, pages)
        if start < end:
            parts += [bytes(start - at), bytes([bit]) * (end - start)]
            at = end
    return b"".join([*parts, bytes(pages - at)])


def states(flags: bytes, backing: Backing) -> bytes:
    """A letter a page."""
    return flags.translate(_TABLES[backing])


def counts(letters: bytes) -> dict[State, int]:
    """Pages in each state; all states are there."""
    return {state: letters.count(letter) for letter, state in _STATES.items()}


@dataclass(frozen=True, slots=True)
class Run:
    """Pages in a row in one state; `first` counts from the start of what was looked at."""

    first: int
    pages: int
    state: State


_RUN: Final = re.compile(rb"(.)\1*", re.S)


def runs(letters: bytes) -> Iterator[Run]:
    for match in _RUN.finditer(letters):
        yield Run(match.start(), match.end() - match.start(), _STATES[letters[match.start()]])


def cell_bytes(size_bytes: int, cells: int) -> int:
    """How much memory one character stands for: a power of two, at least 1 MiB, so that there are at most
    so many characters."""
    step = 1 << 20
    while step * cells < size_bytes:
        step *= 2
    return step


def picture(letters: bytes, pages_per_cell: int) -> str:
    """One character a cell: the letter of the state that most of its touched pages have, a capital when at
    least half of the cell is touched; `.` when nothing of it is."""
    return "".join(_cell(letters[at : at + pages_per_cell]) for at in range(0, len(letters), pages_per_cell))


def _cell(letters: bytes) -> str:
    found = counts(letters)
    touched = len(letters) - found.pop(State.UNTOUCHED)
    if not touched:
        return State.UNTOUCHED.letter
    letter = max(found, key=lambda state: found[state]).letter
    return letter.upper() if touched * 2 >= len(letters) else letter


def bytes_by_state(found: Mapping[State, int], page_bytes: int = PAGE) -> dict[str, int]:
    return {state.value: count * page_bytes for state, count in found.items()}
