"""A program of some 160 bytes for the tiny image: make the guest's kernel draw new random numbers.

What is written to /dev/urandom goes into the kernel's pool, and counts from its next reseeding on: up to a
minute later. A copy of a VM must not wait for that, or it would draw what its siblings draw. The ioctl that
asks for it, RNDRESEEDCRNG (random(4)), is not in reach of a shell, and a compiler not of whoever builds an
image. So it is an ELF file with one segment, written down here: open, ioctl, exit with what that returned.
"""

from __future__ import annotations

import struct
from typing import Final

_PATH: Final = b"/dev/urandom\0"
_BASE: Final = 0x400000
_HEADERS: Final = 64 + 56  # an ELF header and one program header, elf(5)

# mov eax, 2 (open); lea rdi, [path]; xor esi, esi; syscall
# mov edi, eax; mov eax, 16 (ioctl); mov esi, 0x5207; xor edx, edx; syscall
# mov edi, eax; mov eax, 60 (exit); syscall
_X86_64: Final = bytes.fromhex(
    "b802000000 488d3d1d000000 31f6 0f0589c7 b810000000 be07520000 31d2 0f0589c7 b83c000000 0f05"
)
# movn x0, 99 (AT_FDCWD); adr x1, path; mov x2, 0; mov x8, 56 (openat); svc 0
# mov x1, 0x5207; mov x2, 0; mov x8, 29 (ioctl); svc 0
# mov x8, 93 (exit); svc 0
_AARCH64: Final = struct.pack(
    "<11I",
    *(0x92800C60, 0x10000141, 0xD2800002, 0xD2800708, 0xD4000001),
    *(0xD28A40E1, 0xD2800002, 0xD28003A8, 0xD4000001),
    *(0xD2800BA8, 0xD4000001),
)
# li a0, -100 (AT_FDCWD); auipc a1, 0; addi a1, a1, path; li a2, 0; li a7, 56 (openat); ecall
# lui a1, 5; addi a1, a1, 0x207; li a2, 0; li a7, 29 (ioctl); ecall
# li a7, 93 (exit); ecall
_RISCV64: Final = struct.pack(
    "<13I",
    *(0xF9C00513, 0x00000597, 0x03058593, 0x00000613, 0x03800893, 0x00000073),
    *(0x000055B7, 0x20758593, 0x00000613, 0x01D00893, 0x00000073),
    *(0x05D00893, 0x00000073),
)
# e_machine (elf(5)) and the code
_CODE: Final = {"x86_64": (62, _X86_64), "aarch64": (183, _AARCH64), "riscv64": (243, _RISCV64)}


def program(architecture: str) -> bytes | None:
    """The file; None for an architecture that it is not written for."""
    if architecture not in _CODE:
        return None
    machine, code = _CODE[architecture]
    size = _HEADERS + len(code) + len(_PATH)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, machine, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code + _PATH
