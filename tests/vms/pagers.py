"""Guests of one boot sector that set up page tables by hand, turn paging on, say so on the serial port, and
halt: one for each mode of x86 paging, each with translations that are known."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TEXT: Final = "INN-PAGED"
# Tables lie from here on, in 64 KiB that the boot sector clears first.
TABLES: Final = 0x20000
_ORIGIN: Final = 0x7C00
_SECTOR: Final = 512
_P, _RW, _PS, _G = 1, 2, 0x80, 0x100
_PE_PG: Final = 0x8000_0001
_PSE, _PAE, _PGE, _LA57 = 1 << 4, 1 << 5, 1 << 7, 1 << 12
_LME: Final = 1 << 8


@dataclass(frozen=True)
class Pager:
    """`entries`: (offset of a table in pages, index) -> value; `maps`: virtual -> (physical, page size, and
    whether it is writable); `misses`: virtual -> the level at which its walk ends."""

    paging: str
    cr4: int
    entry_bytes: int
    entries: dict[tuple[int, int], int]
    maps: dict[int, tuple[int, int, bool]]
    misses: dict[int, str]
    efer: int = 0

    def disk(self, path: Path) -> Path:
        path.write_bytes(self.sector().ljust(1 << 20, b"\0"))
        return path

    def sector(self) -> bytes:
        """Real mode until the move to CR0, then 16-bit protected (or compatibility) mode with the segments of
        before: all that runs is mapped where it lies."""
        parts = [
            bytes.fromhex("fa 31c0 8ed8"),  # cli; ds = 0
            bytes.fromhex("b80020 8ec0 31ff b90080 31c0 f3ab"),  # es = TABLES >> 4; clear 64 KiB
            b"\xbe%TABLE",  # mov si, table
            # 1: lodsw; cmp ax, -1; je 2f; mov di, ax; movsd; jmp 1b; 2:
            bytes.fromhex("ad 83f8ff 7406 89c7 66a5 ebf4"),
            b"\x66\xb8" + struct.pack("<I", self.cr4) + bytes.fromhex("0f22e0"),
            b"\x66\xb8" + struct.pack("<I", TABLES) + bytes.fromhex("0f22d8"),
        ]
        if self.efer:  # mov ecx, IA32_EFER; rdmsr; or eax, efer; wrmsr
            parts.append(bytes.fromhex("66b9800000c0 0f32 660d") + struct.pack("<I", self.efer) + b"\x0f\x30")
        parts += [
            b"\x66\xb8" + struct.pack("<I", _PE_PG) + bytes.fromhex("0f22c0"),
            b"\xbe%TEXT_",  # mov si, text; then as in vms.bootables
            bytes.fromhex("baf803 ac 84c0 7403 ee ebf8 f4 ebfd"),
        ]
        # Placeholders are 6 bytes where the address takes 2.
        code_size = sum(len(part) for part in parts) - 2 * 4
        table = b"".join(struct.pack("<HI", at, value) for at, value in self._writes()) + b"\xff\xff"
        at_table = _ORIGIN + code_size
        code = b"".join(parts)
        code = code.replace(b"%TABLE", struct.pack("<H", at_table))
        code = code.replace(b"%TEXT_", struct.pack("<H", at_table + len(table)))
        whole = code + table + TEXT.encode() + b"\r\n\0"
        assert len(whole) <= _SECTOR - 2, len(whole)
        return whole.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa"

    def _writes(self) -> list[tuple[int, int]]:
        return [
            (page * 0x1000 + index * self.entry_bytes, value) for (page, index), value in self.entries.items()
        ]


def _table(page: int, flags: int = _P | _RW) -> int:
    return TABLES + page * 0x1000 | flags


_4K, _2M, _4M, _1G = 1 << 12, 1 << 21, 1 << 22, 1 << 30
# The page with the boot sector, as each mode maps it where it lies.
_HERE: Final = 0x7000
_HIGH: Final = 0xFFFF_FFFF_8000_0000

_LONG_ENTRIES: Final = {
    (0, 0): _table(1),
    (1, 0): _table(2),
    (2, 0): _P | _RW | _PS,
    (1, 1): _P | _PS | _G,  # 1 GiB at 1 GiB, of physical 0
    (0, 511): _table(3),
    (3, 510): _table(4),
    (4, 1): 0x200000 | _P | _RW | _PS,
    (4, 2): _table(5, _P),
    (5, 3): 0x345000 | _P | _RW,
}
_LONG_MAPS: Final = {
    _HERE: (_HERE, _2M, True),
    0x4000_0123: (0x123, _1G, False),
    _HIGH + 0x212345: (0x212345, _2M, True),
    _HIGH + 0x403678: (0x345678, _4K, False),
}
_LONG_MISSES: Final = {0x80_0000_0000: "PML4", 0x8000_0000: "PDPT", _HIGH: "PD", _HIGH + 0x404000: "PT"}

PAGERS: Final = {
    "32-bit": Pager(
        "32-bit", 0, 4,
        {(0, 0): _table(1), (1, 7): _HERE | _P | _RW, (0, 512): _table(2, _P), (2, 5): 0x123000 | _P | _RW},
        {_HERE: (_HERE, _4K, True), 0x8000_5ABC: (0x123ABC, _4K, False)},
        {0x4000_0000: "PD", 0x8000_6000: "PT"},
    ),
    "32-bit, 4 MiB": Pager(
        "32-bit", _PSE, 4,
        {(0, 0): _P | _RW | _PS, (0, 0x300): 0x400000 | _P | _PS, (0, 0x301): _table(1),
         (1, 1): 0x654000 | _P | _RW},
        {_HERE: (_HERE, _4M, True), 0xC012_3456: (0x523456, _4M, False), 0xC040_1002: (0x654002, _4K, True)},
        {0xD000_0000: "PD", 0xC040_2000: "PT"},
    ),
    "pae": Pager(
        "pae", _PAE, 8,
        {(0, 0): _table(1, _P), (1, 0): _P | _RW | _PS, (0, 3): _table(2, _P), (2, 1): 0x200000 | _P | _PS,
         (2, 2): _table(3), (3, 4): 0x345000 | _P | _RW},
        {_HERE: (_HERE, _2M, True), 0xC021_2345: (0x212345, _2M, False), 0xC040_4678: (0x345678, _4K, True)},
        {0x4000_0000: "PDPT", 0xC000_0000: "PD", 0xC040_5000: "PT"},
    ),
    "4-level": Pager("4-level", _PAE | _PGE, 8, _LONG_ENTRIES, _LONG_MAPS, _LONG_MISSES, _LME),
    "5-level": Pager(
        "5-level", _PAE | _PGE | _LA57, 8,
        # The same below a fifth level, which also maps the upper half.
        {(0, 0): _table(1), (0, 511): _table(1),
         **{(page + 1, index): value + (0 if value & _PS or page == 5 else 0x1000)
            for (page, index), value in _LONG_ENTRIES.items()}},
        _LONG_MAPS,
        {0x0001_0000_0000_0000: "PML5", **_LONG_MISSES},
        _LME,
    ),
}  # fmt: skip
