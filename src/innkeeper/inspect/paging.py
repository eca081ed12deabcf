"""x86 paging as a pure function: which tables a linear address goes through, and where it ends.

All structures and names are those of the Intel SDM, volume 3A, chapter 4 (Paging): 4.3 for 32-bit
paging, 4.4 for PAE, 4.5 for 4-level and 5-level paging. AMD's manual (volume 2, chapter 5) agrees on all
that is decided here. Memory is whatever `read(address, size)` gives, so the same walk works on a live
guest, on a recorded one, and on tables that a test makes up.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

Read = Callable[[int, int], bytes]

# SDM vol. 3A, 2.5 (control registers) and vol. 4, 2.1 (IA32_EFER)
CR0_PE: Final = 1 << 0
CR0_PG: Final = 1 << 31
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_LA57: Final = 1 << 12
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11

_P, _RW, _US, _PS, _XD = 1 << 0, 1 << 1, 1 << 2, 1 << 7, 1 << 63
_FLAGS: Final = ((0, "P"), (1, "RW"), (2, "US"), (3, "PWT"), (4, "PCD"), (5, "A"))
# 4.1.4 and 4.3: PSE-36 gives 4 MiB pages at most 40 bits of physical address.
_PSE36_BITS: Final = 40
_4K, _32BIT = 1 << 12, 1 << 32


class Unreadable(Exception):
    """Raised by a `Read` for what is no memory: a hole, or a device."""


class Mode(enum.Enum):
    """How linear addresses are translated (4.1.1)."""

    OFF = "off"  # linear addresses are physical
    LEGACY = "32-bit"
    PAE = "pae"
    LONG_4 = "4-level"
    LONG_5 = "5-level"

    @property
    def linear_bits(self) -> int:
        return {Mode.LONG_4: 48, Mode.LONG_5: 57}.get(self, 32)


class End(enum.Enum):
    """How a walk ended; all but MAPPED are page faults for the guest."""

    MAPPED = "mapped"
    NOT_PRESENT = "not-present"
    RESERVED = "reserved-bits"
    NOT_CANONICAL = "not-canonical"  # general protection rather than page fault; or beyond 32 bits
    UNREADABLE = "unreadable"  # a table lies where there is no RAM


@dataclass(frozen=True, slots=True)
class PagingState:
    """The registers that decide a translation, of one moment. `physical_bits` is MAXPHYADDR, of CPUID
    leaf 0x80000008."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    physical_bits: int = 52
    gigabyte_pages: bool = True

    @property
    def mode(self) -> Mode:
        if not self.cr0 & CR0_PG:
            return Mode.OFF
        if not self.cr4 & CR4_PAE:
            return Mode.LEGACY
        # LMA is LME and PG; some states have LME alone right after PG was set.
        if not self.efer & (EFER_LME | EFER_LMA):
            return Mode.PAE
        return Mode.LONG_5 if self.cr4 & CR4_LA57 else Mode.LONG_4


@dataclass(frozen=True, slots=True)
class Step:
    """One paging-structure entry that was read."""

    level: str
    index: int
    entry_address: int  # guest-physical
    entry: int
    entry_bytes: int
    flags: tuple[str, ...]
    points_to: int  # guest-physical: the next table or the page; 0 when the entry is not present
    page_bytes: int  # 0 when it points to another table


@dataclass(frozen=True, slots=True)
class Page:
    """A translation. Rights are those of all levels together (4.6), without what SMEP, SMAP, protection
    keys or CR0.WP add."""

    physical: int  # of the address itself
    base: int  # of its page
    bytes: int
    writable: bool = True
    user: bool = True
    executable: bool = True
    is_global: bool = False
    accessed: bool = True
    dirty: bool = True


@dataclass(frozen=True, slots=True)
class Walk:
    mode: Mode
    address: int
    root: int  # guest-physical address of the first table; 0 when paging is off
    steps: tuple[Step, ...]
    end: End
    level: str = ""  # at which it ended, unless mapped
    detail: str = ""
    page: Page | None = None


@dataclass(frozen=True, slots=True)
class _Level:
    name: str
    shift: int  # the index is the address from this bit on
    index_bits: int
    may_map: bool = False  # bit 7 (PS) makes the entry map a page of 2**shift bytes
    has_rights: bool = True  # a PDPTE of PAE paging has no R/W and U/S


_LONG: Final = (
    _Level("PML5", 48, 9),
    _Level("PML4", 39, 9),
    _Level("PDPT", 30, 9, may_map=True),
    _Level("PD", 21, 9, may_map=True),
    _Level("PT", 12, 9),
)
_LEVELS: Final[dict[Mode, tuple[_Level, ...]]] = {
    Mode.LEGACY: (_Level("PD", 22, 10, may_map=True), _Level("PT", 12, 10)),
    Mode.PAE: (_Level("PDPT", 30, 2, has_rights=False), _Level("PD", 21, 9, may_map=True), _LONG[4]),
    Mode.LONG_4: _LONG[1:],
    Mode.LONG_5: _LONG,
}


def is_canonical(address: int, linear_bits: int) -> bool:
    """SDM vol. 1, 3.3.7.1: the bits above are all like the highest that is translated."""
    above = address >> (linear_bits - 1)
    return above in (0, (1 << (65 - linear_bits)) - 1)


def walk(state: PagingState, address: int, read: Read) -> Walk:
    """Translate a linear address the way the processor would, and keep each step.

    `read(guest_physical, size)` gives memory and raises Unreadable where there is none. Nothing is
    written: accessed and dirty bits stay as they are.
    """
    mode = state.mode
    if mode is Mode.OFF:
        # Without paging, 32 bits: a real-mode address beyond 1 MiB wraps only while A20 is masked.
        if address >= _32BIT:
            return Walk(mode, address, 0, (), End.NOT_CANONICAL, detail="it has more than 32 bits")
        return Walk(mode, address, 0, (), End.MAPPED, page=Page(address, address & -_4K, _4K))
    root = _root(state)
    refusal = _refusal(mode, address)
    if refusal:
        return Walk(mode, address, root, (), End.NOT_CANONICAL, detail=refusal)
    return _Walker(state, address, root, read).run()


def _root(state: PagingState) -> int:
    """Table 4-3 (32-bit), 4-7 (PAE), 4-12 (long mode): CR3 without its flags or PCID."""
    if state.mode is Mode.LEGACY:
        return state.cr3 & 0xFFFF_F000
    if state.mode is Mode.PAE:
        return state.cr3 & 0xFFFF_FFE0
    return state.cr3 & _bits(12, state.physical_bits)


def _refusal(mode: Mode, address: int) -> str:
    if mode.linear_bits == 32:
        return "it has more than 32 bits" if address >= _32BIT else ""
    if is_canonical(address, mode.linear_bits):
        return ""
    top = mode.linear_bits - 1
    return f"bits 63 to {top} must be all 0 or all 1 with {mode.value} paging"


def _bits(low: int, end: int) -> int:
    """A mask of the bits from `low` up to and without `end`."""
    return ((1 << end) - 1) & ~((1 << low) - 1) if end > low else 0


class _Walker:
    def __init__(self, state: PagingState, address: int, root: int, read: Read) -> None:
        self._state, self._address, self._root, self._read = state, address, root, read
        self._mode = state.mode
        self._entry_bytes = 4 if self._mode is Mode.LEGACY else 8
        self._steps: list[Step] = []
        self._writable = self._user = self._executable = True

    def run(self) -> Walk:
        table = self._root
        for level in _LEVELS[self._mode]:
            index = self._address >> level.shift & (1 << level.index_bits) - 1
            at = table + index * self._entry_bytes
            try:
                entry = int.from_bytes(self._read(at, self._entry_bytes), "little")
            except Unreadable:
                return self._ended(End.UNREADABLE, level, f"no memory at {at:#x}, where its entry would be")
            maps = self._maps_page(level, entry)
            present = bool(entry & _P)
            target = self._target(level, entry, maps) if present else 0
            size = 1 << level.shift if maps and present else 0
            flags = _flags(level, entry, maps, self._entry_bytes)
            self._steps.append(Step(level.name, index, at, entry, self._entry_bytes, flags, target, size))
            if not present:
                return self._ended(End.NOT_PRESENT, level, f"the entry at {at:#x} is not present")
            wrong = entry & self._reserved(level, maps)
            if wrong:
                return self._ended(End.RESERVED, level, f"reserved bits are set: {wrong:#x}")
            self._restrict(level, entry)
            if maps:
                return self._mapped(level, entry, target)
            table = target
        raise AssertionError("the last level maps a page")

    def _maps_page(self, level: _Level, entry: int) -> bool:
        if level.shift == 12:
            return True
        if self._mode is Mode.LEGACY and not self._state.cr4 & CR4_PSE:
            return False  # bit 7 is ignored then (table 4-5)
        if level.shift == 30 and not self._state.gigabyte_pages:
            return False  # bit 7 is reserved then
        return level.may_map and bool(entry & _PS)

    def _target(self, level: _Level, entry: int, maps: bool) -> int:
        if self._mode is not Mode.LEGACY:
            return entry & _bits(level.shift if maps else 12, self._state.physical_bits)
        if not (maps and level.shift == 22):
            return entry & 0xFFFF_F000
        # Table 4-4: bits 31:22 are where they are, 39:32 are in bits 20:13.
        high_bits = min(_PSE36_BITS, self._state.physical_bits) - 32
        return entry & 0xFFC0_0000 | (entry >> 13 & (1 << high_bits) - 1) << 32

    def _reserved(self, level: _Level, maps: bool) -> int:
        """Bits that must be 0 in a present entry (tables 4-4, 4-8 to 4-11, 4-14 to 4-20)."""
        high = self._state.physical_bits
        if self._mode is Mode.LEGACY:
            wide = maps and level.shift == 22
            return _bits(13 + min(_PSE36_BITS, high) - 32, 22) if wide else 0
        if not level.has_rights:
            # Bit 5 is reserved as well, but QEMU's TCG sets it, as the A bit that it is at other levels. A
            # processor looks at these bits only when CR3 is loaded, so none of them faults later.
            return _bits(1, 3) | _bits(6, 9) | _bits(high, 64)
        mask = _bits(high, 63 if self._mode is Mode.PAE else 52)
        if not self._state.efer & EFER_NXE:
            mask |= _XD
        if maps and level.shift > 12:
            mask |= _bits(13, level.shift)
        if not maps and not (level.may_map and (level.shift != 30 or self._state.gigabyte_pages)):
            mask |= _PS
        return mask

    def _restrict(self, level: _Level, entry: int) -> None:
        if not level.has_rights:
            return
        self._writable &= bool(entry & _RW)
        self._user &= bool(entry & _US)
        self._executable &= not entry & _XD

    def _mapped(self, level: _Level, entry: int, base: int) -> Walk:
        size = 1 << level.shift
        page = Page(
            physical=base + (self._address & size - 1),
            base=base,
            bytes=size,
            writable=self._writable,
            user=self._user,
            executable=self._executable,
            is_global=bool(entry & 1 << 8),
            accessed=bool(entry & 1 << 5),
            dirty=bool(entry & 1 << 6),
        )
        return Walk(self._mode, self._address, self._root, tuple(self._steps), End.MAPPED, page=page)

    def _ended(self, end: End, level: _Level, detail: str) -> Walk:
        return Walk(self._mode, self._address, self._root, tuple(self._steps), end, level.name, detail)


def _flags(level: _Level, entry: int, maps: bool, entry_bytes: int) -> tuple[str, ...]:
    """Names of the flags that are set, as the SDM has them. An entry that is not present has none: its
    other bits are the operating system's own."""
    if not entry & _P:
        return ()
    names = [name for bit, name in _FLAGS if entry & 1 << bit]
    if maps:
        names += [name for bit, name in ((6, "D"), (8, "G")) if entry & 1 << bit]
        if level.shift > 12:
            names.append("PS")
        if entry & 1 << (12 if level.shift > 12 else 7):
            names.append("PAT")
    if entry_bytes == 8 and entry & _XD:
        names.append("XD")
    return tuple(names)
