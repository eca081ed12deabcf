"""What the inspector decides without a VM: registers, states of pages, composed mappings."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from innkeeper.engine.qemu.inspection import counters_of, parse_views
from innkeeper.errors import BadRequest
from innkeeper.inspect import compose, pages
from innkeeper.inspect.compose import HostPage
from innkeeper.inspect.pages import DATA, EXCLUSIVE, FILE, HUGE, KSM, PRESENT, RESIDENT, SWAPPED, State
from innkeeper.inspect.paging import Mode, Page
from innkeeper.inspect.registers import (
    CR0_BITS,
    CR4_BITS,
    EFER_BITS,
    Registers,
    names_of,
    parse_place,
    parse_registers,
)

# `info registers -a` of QEMU 7.2: a guest in long mode, and one at its first instruction.
LONG = """
CPU#0
RAX=000000000001ad40 RBX=0000000000000000 RCX=0000000000000001 RDX=4000000000000000
RSI=0000000000000083 RDI=00000000000030dc RBP=ffffffff82a1aa40 RSP=ffffffff82a03e98
R8 =0000000000022e80 R9 =00000000314deea1 R10=0000000000000000 R11=0000000000000001
R12=0000000000000000 R13=0000000000000000 R14=ffffffff82a1a110 R15=0000000000000000
RIP=ffffffff81a17a0b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 00000000 00000000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
DS =0000 0000000000000000 00000000 00000000
FS =0000 00000000cafe0000 00000000 00000000
GS =0000 ffff88800ec00000 00000000 00000000
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00007ffd1fdce960 CR3=000000000fa20123 CR4=00750eb0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
YMM00=0000000000000000 0000000000000000 42635dde51e0638d 896688f2e208d906
"""
REAL = """
CPU#1
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00000663
ESI=00000000 EDI=00000000 EBP=00000000 ESP=00001234
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0000 00000000 0000ffff 00009300
CS =f000 ffff0000 0000ffff 00009b00
SS =0700 00007000 0000ffff 00009300
DS =0000 00000000 0000ffff 00009300
FS =0000 00000000 0000ffff 00009300
GS =0000 00000000 0000ffff 00009300
LDT=0000 00000000 0000ffff 00008200
TR =0000 00000000 0000ffff 00008b00
GDT=     00000000 0000ffff
IDT=     00000000 0000ffff
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
DR0=00000000 DR1=00000000 DR2=00000000 DR3=00000000
DR6=ffff0ff0 DR7=00000400
EFER=0000000000000000
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
"""
EFER = "EFER=0000000000000d01"
ARM = "\nCPU#0\n PC=ffff800010011b4c X00=0000000000000000 X01=ffff0000ff7f0300\nPSTATE=600000c5 -ZC- EL1h\n"


def registers(text: str = LONG) -> Registers:
    (one,) = parse_registers(text)
    return one


# -- registers -------------------------------------------------------------------------------------


def test_registers_of_all_vcpus() -> None:
    first, second = parse_registers(LONG + REAL)
    assert (first.cpu, second.cpu) == (0, 1)
    assert first.values["R8"] == 0x22E80 and first.values["RIP"] == 0xFFFFFFFF81A17A0B
    assert second.values["RSP"] == 0x1234, "registers have their long names in every mode"
    assert first.segments["GS"].base == 0xFFFF88800EC00000 and first.tables["GDT"].limit == 0x7F
    assert "YMM00" not in first.values and "FPR0" not in first.values
    assert first.halted and not second.halted


def test_of_another_processor_there_are_none() -> None:
    assert parse_registers(ARM) == [] == parse_registers("") == parse_registers("CPU#0\nnonsense")


@pytest.mark.parametrize(
    ("changes", "mode", "paging"),
    [
        ({}, "long", Mode.LONG_4),
        ({"00af9b00": "00cf9b00"}, "compatibility", Mode.LONG_4),
        ({EFER: "EFER=0000000000000800", "00af9b00": "00cf9b00"}, "protected-32", Mode.PAE),
        (
            {EFER: "EFER=0000000000000000", "00af9b00": "008f9b00", "00750eb0": "00000000"},
            "protected-16",
            Mode.LEGACY,
        ),
        ({EFER: "EFER=0000000000000000", "RFL=00000246": "RFL=00020246"},
         "virtual-8086", Mode.PAE),
        ({"CR4=00750eb0": "CR4=00751eb0"}, "long", Mode.LONG_5),
    ],
)  # fmt: skip
def test_modes(changes: dict[str, str], mode: str, paging: Mode) -> None:
    text = LONG
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    assert (registers(text).mode, registers(text).paging().mode) == (mode, paging)


def test_real_mode_adds_the_segment() -> None:
    one = registers(REAL)
    assert (one.mode, one.ring, one.paging().mode) == ("real", 0, Mode.OFF)
    assert one.rip == 0xFFFFFFF0, "the reset vector"
    assert one.linear("RSP") == 0x8234


def test_names_of_bits() -> None:
    values = registers().values
    assert names_of(values["CR0"], CR0_BITS) == ["PE", "MP", "ET", "NE", "WP", "AM", "PG"]
    assert names_of(values["CR4"], CR4_BITS)[:3] == ["PSE", "PAE", "PGE"]
    assert names_of(values["EFER"], EFER_BITS) == ["SCE", "LME", "LMA", "NXE"]
    assert names_of(1 << 60 | 1, EFER_BITS) == ["SCE", "bit 60"] and names_of(0, EFER_BITS) == []


@pytest.mark.parametrize(
    ("text", "number", "physical"),
    [
        ("0x1000", 0x1000, False),
        ("ffff_ffff_8100_0000", 0xFFFFFFFF81000000, False),
        ("0xFFFFFFFFFFFFFFFF", (1 << 64) - 1, False),
        (" DEADBEEF ", 0xDEADBEEF, False),
        ("rip", 0xFFFFFFFF81A17A0B, False),
        ("RSP+0x10", 0xFFFFFFFF82A03EA8, False),
        ("rsp-8", 0xFFFFFFFF82A03E90, False),
        ("cr2", 0x7FFD1FDCE960, False),
        ("cr3", 0xFA20000, True),
        ("gs", 0xFFFF88800EC00000, False),
        ("gs+0x1c", 0xFFFF88800EC0001C, False),
        ("gdt", 0xFFFFFE0000001000, False),
        ("r14", 0xFFFFFFFF82A1A110, False),
    ],
)
def test_places(text: str, number: int, physical: bool) -> None:
    place = parse_place(text)
    assert (place.resolve(registers()), place.physical) == (number, physical)


@pytest.mark.parametrize(
    "text",
    ["", "0x", "xyz!", "0x1ffffffffffffffff", "rip+", "rip+zz", "-1", "rip*2", "rax+0x", "../x", "٣"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(BadRequest) as failed:
        parse_place(text)
    assert failed.value.hint or "64 bits" in failed.value.message


@pytest.mark.parametrize("text", ["r16", "efer", "cr4", "mxcsr", "zz"])
def test_what_is_no_register(text: str) -> None:
    with pytest.raises(BadRequest, match="rip"):
        parse_place(text).resolve(registers())


def test_a_register_is_no_physical_address() -> None:
    with pytest.raises(BadRequest, match="virtual"):
        parse_place("rip", physical=True)
    assert parse_place("cr3", physical=True).physical and parse_place("1000", physical=True).physical


# -- address spaces --------------------------------------------------------------------------------

MTREE = """FlatView #0
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): ram0
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000c9fff (prio 0, rom): ram0 @00000000000c0000
  0000000000100000-000000007fffffff (prio 0, ram): ram0 @0000000000100000 KVM
  00000000febf4400-00000000febf441f (prio 0, i/o): vga ioports remapped
  0000000100000000-000000017fffffff (prio 0, ram): ram0 @0000000080000000

FlatView #1
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #2
 AS "mch", root: bus master container
 Root memory region: (none)
  No rendered FlatView
"""


def test_address_spaces_are_read() -> None:
    views = parse_views(MTREE)
    assert views["memory"] == views["cpu-memory-0"] and views["mch"] == []
    regions = views["memory"]
    assert [(one.start, one.end, one.kind, one.name, one.offset) for one in regions[2:4]] == [
        (0xC0000, 0xCA000, "rom", "ram0", 0xC0000),
        (0x100000, 0x80000000, "ram", "ram0", 0x100000),
    ]
    assert regions[4].name == "vga ioports remapped" and regions[5].offset == 0x80000000


def test_kvms_counters_are_its_plain_numbers() -> None:
    stats = [
        {"name": "exits", "value": 7},
        {"name": "guest_mode", "value": False},
        {"name": "halt_wait_hist", "value": [0, 1]},
        {"name": "odd"},
    ]
    assert counters_of(stats) == {"exits": 7}


# -- states of pages -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "shared_file", "private_file", "anonymous"),
    [
        (0, State.UNTOUCHED, State.UNTOUCHED, State.UNTOUCHED),
        (PRESENT | FILE | EXCLUSIVE, State.OWN, State.SHARED, State.OWN),
        (PRESENT | EXCLUSIVE, State.OWN, State.PRIVATE, State.OWN),
        (PRESENT | FILE | HUGE, State.HUGE, State.SHARED, State.HUGE),
        (PRESENT | HUGE, State.HUGE, State.HUGE, State.HUGE),
        (PRESENT | KSM, State.KSM, State.KSM, State.KSM),
        (SWAPPED, State.SWAPPED, State.SWAPPED, State.SWAPPED),
        (RESIDENT | DATA, State.OWN, State.SHARED, State.UNTOUCHED),
        (DATA, State.SWAPPED, State.SWAPPED, State.UNTOUCHED),
        (RESIDENT, State.OWN, State.SHARED, State.UNTOUCHED),
    ],
)
def test_states(flags: int, shared_file: State, private_file: State, anonymous: State) -> None:
    assert pages.classify(flags, "shared-file") is shared_file
    assert pages.classify(flags, "private-file") is private_file
    assert pages.classify(flags, "anonymous") is anonymous


def test_the_top_byte_of_an_entry_is_enough() -> None:
    soft_dirty, present, swapped, file, exclusive = 1 << 55, 1 << 63, 1 << 62, 1 << 61, 1 << 56
    entries = [0, present | file | 0x1234, swapped, present | exclusive | soft_dirty, 1 << 57 | 1 << 58]
    data = b"".join(entry.to_bytes(8, "little") for entry in entries)
    assert pages.top_bytes(data) == bytes([0, PRESENT | FILE, SWAPPED, PRESENT | EXCLUSIVE, 0])


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=6), st.integers(0, 50))
def test_ranges_become_marks(pairs: list[tuple[int, int]], count: int) -> None:
    ranges = sorted((min(pair), max(pair)) for pair in pairs)
    marks = pages.marked(count, ranges, DATA)
    expected = bytes(
        DATA if any(start <= page < end for start, end in ranges) else 0 for page in range(count)
    )
    assert marks == expected


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))))
def test_combining_is_bitwise_or(rows: list[tuple[int, int, int]]) -> None:
    columns = [bytes(row[column] for row in rows) for column in range(3)]
    assert pages.combine(*columns) == bytes(a | b | c for a, b, c in rows)


@given(st.text("ohspkw.", max_size=300))
def test_runs_and_counts_cover_every_page(text: str) -> None:
    letters = text.encode()
    found = list(pages.runs(letters))
    assert "".join(run.state.letter * run.pages for run in found) == text
    assert all(before.state is not after.state for before, after in pairwise(found))
    assert sum(pages.counts(letters).values()) == len(text)


def test_a_picture() -> None:
    assert pages.picture(b"oooo" + b"...." + b"s..." + b"ssp." + b"p", 4) == "O.sSP"
    assert pages.picture(b"", 4) == ""
    assert [pages.cell_bytes(size, 512) >> 20 for size in (1 << 20, 512 << 20, 513 << 20, 64 << 30)] == [
        1, 1, 2, 128,
    ]  # fmt: skip


# -- composed mappings -----------------------------------------------------------------------------

HOST_4K = HostPage(base=0x5000, bytes=4096, present=True, writable=True, frame=0x9_9000)


def guest_page(**changes: object) -> Page:
    fields: dict[str, object] = {"physical": 0x5123, "base": 0x5000, "bytes": 4096} | changes
    return Page(**fields)  # type: ignore[arg-type]


def test_the_shadow_entry_goes_all_the_way() -> None:
    entry = compose.shadow_entry(0x7000_0123, guest_page(executable=False), HOST_4K)
    assert (entry.base, entry.target, entry.bytes) == (0x7000_0000, 0x9_9000, 4096)
    assert entry.writable and entry.user and not entry.executable and entry.present and entry.why == ()


@pytest.mark.parametrize(
    ("guest", "host", "expected"),
    [(2 << 20, 4096, 4096), (2 << 20, 2 << 20, 2 << 20), (4096, 2 << 20, 4096), (1 << 30, 2 << 20, 2 << 20),
     (4 << 20, 1 << 30, 2 << 20)],
)  # fmt: skip
def test_the_smaller_page_of_the_two(guest: int, host: int, expected: int) -> None:
    physical, address = 0x4030_5123, 0x7FFF_4030_5123
    page = guest_page(physical=physical, base=physical & -guest, bytes=guest)
    behind = HostPage(physical & -host, host, True, True, 0x1_0000_0000)
    entry = compose.shadow_entry(address, page, behind)
    assert entry.bytes == expected and entry.base == address & -expected
    assert entry.target == 0x1_0000_0000 + (physical & -expected) - (physical & -host)


def test_why_a_shadow_entry_may_less() -> None:
    clean = compose.shadow_entry(0, guest_page(dirty=False), HOST_4K)
    assert not clean.writable and clean.present and "dirty" in clean.why[0]
    shared = HostPage(0x5000, 4096, True, False, 0x9_9000)
    entry = compose.shadow_entry(0, guest_page(), shared)
    assert not entry.writable and "copies it first" in entry.why[0]
    assert not compose.nested_entry(shared).writable
    fresh = compose.shadow_entry(0, guest_page(accessed=False), HOST_4K)
    assert not fresh.present and "A bit" in fresh.why[0]
    absent = HostPage(0x5000, 4096, False, False, None)
    entry = compose.shadow_entry(0, guest_page(), absent)
    assert not entry.present and entry.target is None and "brings it in" in entry.why[0]
    read_only = compose.shadow_entry(0, guest_page(writable=False, dirty=False), shared)
    assert read_only.why == (), "what the guest does not allow needs no reason"


def test_memory_references_of_a_walk() -> None:
    assert compose.nested_references([4096] * 4, 4096) == 24, "4 + 4 levels of 4 KiB, the textbook's number"
    assert compose.nested_references([4096] * 3, 2 << 20) == 18
    assert compose.nested_references([1 << 30] * 4, 1 << 30) == 14
    assert compose.nested_references([], 4096) == 4, "without paging in the guest"
    assert [compose.shadow_references(size, 4) for size in (4096, 2 << 20, 1 << 30)] == [4, 3, 2]
    assert compose.shadow_references(4096, 5) == 5 and compose.shadow_references(4096, 2) == 3
