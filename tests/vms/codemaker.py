"""A program that runs as much different code as it is told to, for guests without a compiler."""

from __future__ import annotations

import struct

_BASE, _CODE = 0x400000, 0x800000
# Three stores, and a jump to what follows: to an emulator a piece of code of its own.
_BLOCK = bytes.fromhex("880e 880e 880e eb00")


def program(blocks: int) -> bytes:
    """An ELF file for x86-64 Linux that fills memory with so many blocks of 8 bytes of code, runs each once,
    and exits with 0. QEMU 7.2 makes some 600 bytes of a block."""
    code = b"".join(
        (
            b"\x48\x8d\x74\x24\xc0",  # lea rsi, [rsp - 64]: where the stores go
            b"\xbf" + struct.pack("<I", _CODE),  # mov edi, code
            b"\xb9" + struct.pack("<I", blocks),  # mov ecx, blocks
            b"\x48\xb8" + _BLOCK,  # mov rax, block
            b"\xfc\xf3\x48\xab",  # cld; rep stosq
            b"\xc6\x07\xc3",  # mov byte [rdi], ret
            b"\xb8" + struct.pack("<I", _CODE),  # mov eax, code
            b"\xff\xd0",  # call rax
            b"\x31\xff\xb8\x3c\x00\x00\x00\x0f\x05",  # exit(0)
        )
    )
    header_bytes, segment_bytes = 64, 56
    begin = header_bytes + segment_bytes
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        2,  # executable
        62,  # x86-64
        1,
        _BASE + begin,
        header_bytes,
        *(0, 0, header_bytes, segment_bytes, 1, 0, 0, 0),
    )
    in_memory = _CODE - _BASE + 8 * blocks + 4096
    readable_writable_executable = 7
    segment = struct.pack(
        "<IIQQQQQQ", 1, readable_writable_executable, 0, _BASE, _BASE, begin + len(code), in_memory, 4096
    )
    return header + segment + code


def script(blocks: int) -> str:
    """For a shell: makes the program and runs it."""
    text = "".join(f"\\{byte:03o}" for byte in program(blocks))
    return f"printf '{text}' >/codemaker; chmod +x /codemaker; /codemaker"
