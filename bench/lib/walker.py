"""A program for x86-64 Linux that misses the TLB: it adds 1 to a word at a random place in a block of memory,
again and again. 200 bytes of code and no library, so that it runs in any guest, the tiny one too."""

from __future__ import annotations

import struct
from typing import Final, Literal

Pages = Literal["small", "huge", "any"]

_MIB2: Final = 2 << 20
# madvise(2): MADV_HUGEPAGE, MADV_NOHUGEPAGE; negative: not called.
_ADVICE: Final[dict[Pages, int]] = {"huge": 14, "small": 15, "any": -1}
_BASE: Final = 0x400000
_HEADERS: Final = 64 + 56

# The block is `size` bytes mapped, from their first multiple of 2 MiB; every page of it is written first.
_CODE: Final = bytes.fromhex(
    "488b35c1000000"  # _start: mov rsi, [size]
    "31ffba0300000041ba2200000049c7c0ffffffff4531c9"  # rdi = 0, rdx = READ|WRITE, r10 = PRIVATE|ANON, r8 = -1
    "b8090000000f05"  # mmap
    "488d98ffff1f004881e30000e0ff"  # rbx = rax rounded up to 2 MiB
    "8b15a700000085d27818"  # edx = [advice]; js 1f
    "4889df488b35810000004881ee00002000b81c0000000f05"  # madvise(rbx, [size] - 2 MiB, edx)
    "488b0d6c0000004881e9000020004889df"  # 1: rcx = [size] - 2 MiB; rdi = rbx
    "48890f4881c7001000004881e9001000007fed"  # 2: [rdi] = rcx; rdi += 4096; rcx -= 4096; jg 2b
    "488b0d5000000048c7c00100000048ba2d7f954c2df451584c8b0540000000"  # rcx = [turns]; rax = 1; rdx; r8 = mask
    "4885c9741e"  # test rcx, rcx; jz 4f
    "480fafc24805393000004889c748c1ef144c21c7"  # 3: rax = rax * rdx + 12345; rdi = rax >> 20 & r8
    "4883043b0148ffc975e2"  # add qword [rbx + rdi], 1; dec rcx; jnz 3b
    "31ffb83c0000000f05"  # 4: exit(0)
    "0f1f4000"  # the numbers follow at 0xc8: size, turns, mask, advice
)


def walker(span_bytes: int, turns: int, pages: Pages) -> bytes:
    """An executable that walks over `span_bytes`, a power of two of at least 2 MiB, `turns` times. Raises
    ValueError for another span."""
    if span_bytes < _MIB2 or span_bytes & (span_bytes - 1):
        raise ValueError(f"not a power of two of at least 2 MiB: {span_bytes}")
    # Whole words only: none lies in two pages.
    numbers = struct.pack("<QQQq", span_bytes + _MIB2, turns, (span_bytes - 1) & ~7, _ADVICE[pages])
    size = _HEADERS + len(_CODE) + len(numbers)
    # Elf64_Ehdr and one Elf64_Phdr, readable and executable (elf(5)).
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + _CODE + numbers
