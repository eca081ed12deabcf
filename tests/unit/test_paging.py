"""Page walks over tables made by hand, in every mode of x86; and by chance, against the tables' maker."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innkeeper.inspect.paging import (
    End,
    Mode,
    PagingState,
    Unreadable,
    Walk,
    is_canonical,
    walk,
)

PE_PG = 1 << 31 | 1
PSE, PAE, LA57 = 1 << 4, 1 << 5, 1 << 12
LONG, NXE = 1 << 8 | 1 << 10, 1 << 11
P, RW, US, A, D, PS, G, PAT, XD = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 12, 1 << 63
KERNEL = P | RW | A | D

LEGACY_STATE = PagingState(PE_PG, 0x1000, 0, 0, physical_bits=36)
LEGACY_PSE = replace(LEGACY_STATE, cr4=PSE)
PAE_STATE = PagingState(PE_PG, 0x1020, PAE, NXE, physical_bits=36)
LONG_STATE = PagingState(PE_PG, 0x1000, PAE, LONG | NXE, physical_bits=40)
FIVE_STATE = replace(LONG_STATE, cr4=PAE | LA57)


class Ram:
    """Guest memory of 64 KiB, and nothing beyond."""

    SIZE = 0x10000

    def __init__(self) -> None:
        self.bytes = bytearray(self.SIZE)
        self.reads: list[int] = []

    def read(self, address: int, size: int) -> bytes:
        if address + size > self.SIZE:
            raise Unreadable(hex(address))
        self.reads.append(address)
        return bytes(self.bytes[address : address + size])

    def put(self, address: int, value: int, size: int = 8) -> None:
        self.bytes[address : address + size] = value.to_bytes(size, "little")


@pytest.fixture
def ram() -> Ram:
    return Ram()


def names(found: Walk) -> list[str]:
    return [step.level for step in found.steps]


def physical(found: Walk) -> int:
    assert found.end is End.MAPPED and found.page is not None, found
    return found.page.physical


# -- which mode ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "mode"),
    [
        (PagingState(0, 0, 0, 0), Mode.OFF),
        (PagingState(1, 0, PAE, LONG), Mode.OFF),  # PG decides
        (LEGACY_STATE, Mode.LEGACY),
        (LEGACY_PSE, Mode.LEGACY),
        (PAE_STATE, Mode.PAE),
        (LONG_STATE, Mode.LONG_4),
        (FIVE_STATE, Mode.LONG_5),
        (PagingState(PE_PG, 0, LA57, 0), Mode.LEGACY),  # LA57 means nothing outside long mode
    ],
)
def test_the_mode_follows_from_the_registers(state: PagingState, mode: Mode) -> None:
    assert state.mode is mode


@pytest.mark.parametrize(
    ("address", "four", "five"),
    [
        (0, True, True),
        (0x7FFF_FFFF_FFFF, True, True),
        (0x8000_0000_0000, False, True),
        (0xFFFF_7FFF_FFFF_FFFF, False, True),
        (0xFFFF_8000_0000_0000, True, True),
        (0x00FF_FFFF_FFFF_FFFF, False, True),
        (0x0100_0000_0000_0000, False, False),
        (0xFEFF_FFFF_FFFF_FFFF, False, False),
        (0xFF00_0000_0000_0000, False, True),
        (0xFFFF_FFFF_FFFF_FFFF, True, True),
    ],
)
def test_canonical_addresses(address: int, four: bool, five: bool) -> None:
    assert is_canonical(address, 48) is four
    assert is_canonical(address, 57) is five


# -- paging off ------------------------------------------------------------------------------------


def test_without_paging_an_address_is_physical_and_nothing_is_read(ram: Ram) -> None:
    found = walk(PagingState(0x10, 0xDEAD000, 0, 0), 0xFFFF0, ram.read)
    assert physical(found) == 0xFFFF0 and found.steps == () and ram.reads == []
    assert walk(PagingState(0, 0, 0, 0), 1 << 32, ram.read).end is End.NOT_CANONICAL


# -- 32-bit ----------------------------------------------------------------------------------------


def test_32_bit_4k_page(ram: Ram) -> None:
    ram.put(0x1000 + 3 * 4, 0x2000 | P | RW | US, 4)
    ram.put(0x2000 + 5 * 4, 0x0BEEF000 | P | A, 4)
    found = walk(LEGACY_STATE, 3 << 22 | 5 << 12 | 0x123, ram.read)
    assert physical(found) == 0x0BEEF123
    assert [(one.level, one.index, one.entry_address) for one in found.steps] == [
        ("PD", 3, 0x100C),
        ("PT", 5, 0x2014),
    ]
    page = found.page
    assert page and not page.writable and not page.user and page.executable, "each level must allow it"
    assert page.accessed and not page.dirty and page.bytes == 4096


def test_a_4_mib_page_needs_pse(ram: Ram) -> None:
    ram.put(0x1000 + 4, 0x00C00000 | P | PS | G | D, 4)
    found = walk(LEGACY_PSE, 1 << 22 | 0x3ABCDE, ram.read)
    assert physical(found) == 0x00FABCDE and names(found) == ["PD"]
    assert found.page and found.page.bytes == 4 << 20 and found.page.is_global and found.page.dirty
    # Without CR4.PSE the bit is ignored: it is a table, and its address has no memory here.
    assert walk(LEGACY_STATE, 1 << 22, ram.read).end is End.UNREADABLE


def test_pse_36_puts_high_bits_of_the_address_into_the_entry(ram: Ram) -> None:
    ram.put(0x1000, 0x00400000 | 0xA << 13 | P | PS, 4)  # bits 35:32 = 0xA
    assert physical(walk(LEGACY_PSE, 0x1234, ram.read)) == 0xA_0040_1234
    # With 36 bits of physical address, bit 17 of the entry is the first reserved one.
    ram.put(0x1000, 0x00400000 | 1 << 17 | P | PS, 4)
    assert walk(LEGACY_PSE, 0, ram.read).end is End.RESERVED
    wide = replace(LEGACY_PSE, physical_bits=52)  # PSE-36 has 40 bits at most
    assert physical(walk(wide, 0, ram.read)) == 0x10_0040_0000
    ram.put(0x1000, 0x00400000 | 1 << 21 | P | PS, 4)
    assert walk(wide, 0, ram.read).end is End.RESERVED


@pytest.mark.parametrize("state", [LEGACY_STATE, PAE_STATE])
def test_32_bit_modes_refuse_longer_addresses(ram: Ram, state: PagingState) -> None:
    found = walk(state, 1 << 32, ram.read)
    assert found.end is End.NOT_CANONICAL and "32 bits" in found.detail and ram.reads == []


# -- PAE -------------------------------------------------------------------------------------------


def test_pae_4k_page_far_up(ram: Ram) -> None:
    ram.put(0x1020 + 2 * 8, 0x2000 | P)  # CR3 is aligned to 32 bytes
    ram.put(0x2000 + 7 * 8, 0x3000 | P | RW | US)
    ram.put(0x3000 + 9 * 8, 0xF_0000_0000 | P | RW | US | XD)
    found = walk(PAE_STATE, 2 << 30 | 7 << 21 | 9 << 12 | 0xFFF, ram.read)
    assert physical(found) == 0xF_0000_0FFF and names(found) == ["PDPT", "PD", "PT"]
    assert found.page and found.page.writable and found.page.user, "a PDPTE says nothing of rights"
    assert not found.page.executable


def test_pae_2m_page(ram: Ram) -> None:
    ram.put(0x1020, 0x2000 | P)
    ram.put(0x2000 + 8, 0x8060_0000 | P | RW | PS | PAT)
    found = walk(PAE_STATE, 1 << 21 | 0x54321, ram.read)
    assert physical(found) == 0x8065_4321 and found.page and found.page.bytes == 2 << 20
    assert set(found.steps[-1].flags) == {"P", "RW", "PS", "PAT"}


@pytest.mark.parametrize(
    ("entries", "level"),
    [
        ({0x1020: 0x2000 | P | RW}, "PDPT"),  # bits 2:1 of a PDPTE
        ({0x1020: 0x2000 | P | 1 << 6}, "PDPT"),
        ({0x1020: 0x2000 | P | XD}, "PDPT"),
        ({0x1020: 0x2000 | P | 1 << 36}, "PDPT"),  # beyond MAXPHYADDR
        ({0x1020: 0x2000 | P, 0x2000: 0x3000 | P | 1 << 62}, "PD"),
        ({0x1020: 0x2000 | P, 0x2000: 0x20_0000 | P | PS | 1 << 13}, "PD"),
        ({0x1020: 0x2000 | P, 0x2000: 0x3000 | P, 0x3000: P | 1 << 40}, "PT"),
    ],
)
def test_pae_reserved_bits(ram: Ram, entries: dict[int, int], level: str) -> None:
    for address, entry in entries.items():
        ram.put(address, entry)
    found = walk(PAE_STATE, 0, ram.read)
    assert (found.end, found.level) == (End.RESERVED, level) and found.page is None


def test_tcg_marks_a_pdpte_accessed(ram: Ram) -> None:
    """As no processor does; the guest runs on all the same."""
    ram.put(0x1020, 0x2000 | P | A)
    ram.put(0x2000, P | PS)
    assert walk(PAE_STATE, 0x1234, ram.read).end is End.MAPPED


# -- long mode -------------------------------------------------------------------------------------


def chain(ram: Ram, state: PagingState, address: int, tables: Iterable[int], leaf: int) -> int:
    """Tables for one address, all rights given above the leaf; where the leaf's entry is."""
    shift = 48 if state.mode is Mode.LONG_5 else 39
    at = state.cr3 & ~0xFFF
    for table in tables:
        ram.put(at + (address >> shift & 511) * 8, table | P | RW | US | A)
        at, shift = table, shift - 9
    place = at + (address >> shift & 511) * 8
    ram.put(place, leaf)
    return place


ADDRESS = 0xFFFF_FF81_2345_6789 & (1 << 64) - 1


def test_4_levels_4k(ram: Ram) -> None:
    at = chain(ram, LONG_STATE, ADDRESS, (0x2000, 0x3000, 0x4000), 0xAB_CDEF_0000 | P | US | A)
    found = walk(LONG_STATE, ADDRESS, ram.read)
    assert physical(found) == 0xAB_CDEF_0789
    assert names(found) == ["PML4", "PDPT", "PD", "PT"]
    assert [one.index for one in found.steps] == [ADDRESS >> shift & 511 for shift in (39, 30, 21, 12)]
    assert found.steps[-1].entry_address == at
    assert found.page and found.page.user and not found.page.writable and found.page.executable


@pytest.mark.parametrize(
    ("tables", "size"), [((0x2000,), 1 << 30), ((0x2000, 0x3000), 2 << 20), ((0x2000, 0x3000, 0x4000), 4096)]
)
@pytest.mark.parametrize("state", [LONG_STATE, FIVE_STATE])
def test_page_sizes(ram: Ram, state: PagingState, tables: tuple[int, ...], size: int) -> None:
    more = (0x5000, *tables) if state is FIVE_STATE else tables
    flags = P | RW | A | D | (PS if size > 4096 else 0)
    chain(ram, state, ADDRESS, more, 0x40_0000_0000 | flags)
    found = walk(state, ADDRESS, ram.read)
    assert physical(found) == 0x40_0000_0000 + ADDRESS % size
    assert found.page and found.page.bytes == size and found.page.base == 0x40_0000_0000
    assert found.steps[-1].page_bytes == size and [one.page_bytes for one in found.steps[:-1]] == [0] * len(
        more
    )


def test_5_levels_reach_where_4_do_not(ram: Ram) -> None:
    address = 0x00AB_CDEF_0123_4567
    chain(ram, FIVE_STATE, address, (0x2000, 0x3000, 0x4000, 0x5000), 0x7000 | P)
    assert physical(walk(FIVE_STATE, address, ram.read)) == 0x7567
    found = walk(LONG_STATE, address, ram.read)
    assert found.end is End.NOT_CANONICAL and "47" in found.detail and found.steps == ()


@pytest.mark.parametrize("depth", range(4))
def test_it_says_at_which_level_it_ended(ram: Ram, depth: int) -> None:
    chain(ram, LONG_STATE, ADDRESS, (0x2000, 0x3000, 0x4000)[:depth], 0xDEAD_BEE0)  # P is not set
    found = walk(LONG_STATE, ADDRESS, ram.read)
    level = ("PML4", "PDPT", "PD", "PT")[depth]
    assert (found.end, found.level, len(found.steps)) == (End.NOT_PRESENT, level, depth + 1)
    assert found.page is None and found.steps[-1].flags == () and found.steps[-1].points_to == 0


def test_a_table_where_no_memory_is(ram: Ram) -> None:
    chain(ram, LONG_STATE, ADDRESS, (0x2000, 0xF_FFFF_F000), 0)
    found = walk(LONG_STATE, ADDRESS, ram.read)
    assert (found.end, found.level, names(found)) == (End.UNREADABLE, "PD", ["PML4", "PDPT"])
    assert walk(replace(LONG_STATE, cr3=0xFF_FFFF_F000), 0, ram.read).end is End.UNREADABLE


@pytest.mark.parametrize("bit", [40, 45, 51])
@pytest.mark.parametrize("depth", range(4))
def test_bits_above_maxphyaddr_are_reserved(ram: Ram, bit: int, depth: int) -> None:
    chain(ram, LONG_STATE, ADDRESS, (0x2000, 0x3000, 0x4000)[:depth], 0x5000 | P | 1 << bit)
    found = walk(LONG_STATE, ADDRESS, ram.read)
    assert found.end is End.RESERVED and hex(1 << bit) in found.detail


@pytest.mark.parametrize("bit", [*range(9, 12), *range(52, 63)])
def test_bits_the_processor_ignores(ram: Ram, bit: int) -> None:
    chain(ram, LONG_STATE, ADDRESS, (0x2000, 0x3000, 0x4000), 0x5000 | P | 1 << bit)
    assert physical(walk(LONG_STATE, ADDRESS, ram.read)) == 0x5789


def test_other_reserved_bits(ram: Ram) -> None:
    """PS in a PML4E; alignment of large pages; XD without EFER.NXE; 1 GiB pages where there are none."""
    chain(ram, LONG_STATE, ADDRESS, (), 0x2000 | P | PS)
    assert walk(LONG_STATE, ADDRESS, ram.read).end is End.RESERVED
    chain(ram, LONG_STATE, ADDRESS, (0x2000,), 0x4000_0000 | P | PS | 1 << 13)
    assert walk(LONG_STATE, ADDRESS, ram.read).level == "PDPT"
    chain(ram, LONG_STATE, ADDRESS, (0x2000, 0x3000), 0x20_0000 | P | PS | 1 << 20)
    assert walk(LONG_STATE, ADDRESS, ram.read).level == "PD"
    chain(ram, LONG_STATE, ADDRESS, (0x2000,), 0x4000_0000 | P | PS | PAT)
    assert walk(LONG_STATE, ADDRESS, ram.read).end is End.MAPPED
    old = replace(LONG_STATE, gigabyte_pages=False)
    assert (walk(old, ADDRESS, ram.read).end, walk(old, ADDRESS, ram.read).level) == (End.RESERVED, "PDPT")
    chain(ram, LONG_STATE, ADDRESS, (0x2000,), 0x4000_0000 | P | PS | XD)
    assert walk(replace(LONG_STATE, efer=LONG), ADDRESS, ram.read).end is End.RESERVED


def test_rights_are_those_of_all_levels(ram: Ram) -> None:
    leaf = 0x5000 | P | RW | US
    chain(ram, LONG_STATE, ADDRESS, (0x2000, 0x3000, 0x4000), leaf)
    found = walk(LONG_STATE, ADDRESS, ram.read)
    assert found.page and found.page.writable and found.page.user and found.page.executable
    places = [one.entry_address for one in found.steps[:3]]
    for place in places:
        whole = int.from_bytes(ram.read(place, 8), "little")
        for change, denied in ((whole & ~RW, "writable"), (whole & ~US, "user"), (whole | XD, "executable")):
            ram.put(place, change)
            page = walk(LONG_STATE, ADDRESS, ram.read).page
            assert page and not getattr(page, denied)
        ram.put(place, whole)


def test_cr3_is_taken_without_its_flags(ram: Ram) -> None:
    chain(ram, LONG_STATE, ADDRESS, (0x2000, 0x3000, 0x4000), 0x5000 | P)
    with_pcid = replace(LONG_STATE, cr3=LONG_STATE.cr3 | 0xABC | 1 << 63)
    assert walk(with_pcid, ADDRESS, ram.read).page == walk(LONG_STATE, ADDRESS, ram.read).page


def test_pat_of_a_small_page_is_bit_7(ram: Ram) -> None:
    chain(ram, LONG_STATE, ADDRESS, (0x2000, 0x3000, 0x4000), 0x5000 | P | 1 << 7 | G)
    assert set(walk(LONG_STATE, ADDRESS, ram.read).steps[-1].flags) == {"P", "PAT", "G"}


# -- tables made by chance -------------------------------------------------------------------------

_SHIFTS = {Mode.LEGACY: (22, 12), Mode.PAE: (30, 21, 12), Mode.LONG_4: (39, 30, 21, 12)}
_SHIFTS[Mode.LONG_5] = (48, *_SHIFTS[Mode.LONG_4])
_SIZES = {Mode.LEGACY: (12, 22), Mode.PAE: (12, 21), Mode.LONG_4: (12, 21, 30), Mode.LONG_5: (12, 21, 30)}
_STATES = {Mode.LEGACY: LEGACY_PSE, Mode.PAE: PAE_STATE, Mode.LONG_4: LONG_STATE, Mode.LONG_5: FIVE_STATE}


class Tables:
    """An operating system of a few lines: it maps pages, as the manual's figures 4-2 to 4-11 show."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.words: dict[int, int] = {}
        self.entry_bytes = 4 if mode is Mode.LEGACY else 8
        self.root = _STATES[mode].cr3 & ~0xF if mode is Mode.PAE else 0x1000
        self._free = 0x10_0000

    def map(self, address: int, frame: int, page_shift: int, flags: int) -> bool:
        """False where another page is in the way."""
        table = self.root
        for shift in _SHIFTS[self.mode]:
            bits = 10 if self.mode is Mode.LEGACY else 9
            index = address >> shift & (3 if shift == 30 and self.mode is Mode.PAE else (1 << bits) - 1)
            at = table + index * self.entry_bytes
            if shift == page_shift:
                if at in self.words:
                    return False
                self.words[at] = frame | flags | (PS if shift > 12 else 0)
                return True
            entry = self.words.get(at, 0)
            if entry & PS:
                return False
            if not entry:
                top = self.mode is Mode.PAE and shift == 30
                self.words[at] = entry = self._free | P | (0 if top else RW | US)
                self._free += 0x1000
            table = entry & 0xF_FFFF_F000
        raise AssertionError

    def read(self, address: int, size: int) -> bytes:
        assert size == self.entry_bytes and address % size == 0
        return self.words.get(address, 0).to_bytes(size, "little")


def _linear(mode: Mode, number: int) -> int:
    number &= (1 << mode.linear_bits) - 1
    if mode.linear_bits > 32 and number >> (mode.linear_bits - 1):
        number |= -1 << mode.linear_bits & (1 << 64) - 1
    return number


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from(list(_SHIFTS)))
def test_what_was_mapped_is_found_and_nothing_else(data: st.DataObject, mode: Mode) -> None:
    tables, state = Tables(mode), _STATES[mode]
    mapped: list[tuple[int, int, int, int]] = []
    for _ in range(data.draw(st.integers(1, 6))):
        shift = data.draw(st.sampled_from(_SIZES[mode]))
        address = _linear(mode, data.draw(st.integers(0, (1 << 57) - 1))) >> shift << shift
        frame_bits = 32 if mode is Mode.LEGACY else state.physical_bits
        frame = data.draw(st.integers(0, (1 << frame_bits) - 1)) >> shift << shift
        flags = P | data.draw(st.sampled_from([0, RW, US, RW | US, A, A | D, G]))
        if tables.map(address, frame, shift, flags):
            mapped.append((address, frame, shift, flags))
    for address, frame, shift, flags in mapped:
        offset = data.draw(st.integers(0, (1 << shift) - 1))
        found = walk(state, address + offset, tables.read)
        assert found.page is not None, found
        assert (found.page.physical, found.page.bytes) == (frame + offset, 1 << shift)
        assert found.page.writable is bool(flags & RW) and found.page.user is bool(flags & US)
        assert found.page.dirty is bool(flags & D) and found.page.is_global is bool(flags & G)
    stray = _linear(mode, data.draw(st.integers(0, (1 << 57) - 1)))
    inside = any(address <= stray < address + (1 << shift) for address, _, shift, _ in mapped)
    found = walk(state, stray, tables.read)
    assert (found.end is End.MAPPED) is inside
    if not inside:
        assert found.end is End.NOT_PRESENT and found.level == found.steps[-1].level


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([LEGACY_STATE, LEGACY_PSE, PAE_STATE, LONG_STATE, FIVE_STATE]),
)
def test_any_memory_gives_an_answer(seed: int, address: int, state: PagingState) -> None:
    """A guest puts what it likes where its tables are: the walk ends all the same, in as many steps as
    there are levels."""
    page = random.Random(seed).randbytes(4096)

    def read(where: int, size: int) -> bytes:
        at = where % 4096
        return page[at : at + size]

    found = walk(state, address, read)
    assert len(found.steps) <= 5
    assert (found.page is not None) is (found.end is End.MAPPED)
    if found.page:
        assert 0 <= found.page.physical < 1 << 52
