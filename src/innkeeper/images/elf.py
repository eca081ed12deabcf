"""Which shared libraries a program needs, read from the files themselves.

`ldd` would run the program's own loader and answer for the host's libraries; an image is made of
the packages' files, which may be of another release than the host.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PT_LOAD: Final = 1
_PT_DYNAMIC: Final = 2
_PT_INTERP: Final = 3
_DT_NEEDED: Final = 1
_DT_STRTAB: Final = 5
_LIBRARY_DIRS: Final = (
    *(f"{top}lib/{name}-linux-gnu" for name in ("x86_64", "aarch64", "riscv64") for top in ("", "usr/")),
    "lib64", "usr/lib64", "lib", "usr/lib",
)  # fmt: skip


class NotElf(ValueError):
    """The file is no 64-bit little-endian ELF file, or is damaged."""


@dataclass(frozen=True)
class Linkage:
    """What a file asks of the dynamic loader: its path (programs only) and library names."""

    interpreter: str | None
    needed: tuple[str, ...]


def linkage(data: bytes) -> Linkage:
    """Read PT_INTERP and the DT_NEEDED entries. Raises NotElf."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise NotElf("not a 64-bit little-endian ELF file")
    try:
        return _linkage(data)
    except (struct.error, IndexError) as error:
        raise NotElf(f"damaged ELF file: {error}") from error


def _linkage(data: bytes) -> Linkage:
    (table,) = struct.unpack_from("<Q", data, 0x20)
    entry_size, count = struct.unpack_from("<HH", data, 0x36)
    loads: list[tuple[int, int, int]] = []
    dynamic: tuple[int, int] | None = None
    interpreter = None
    for index in range(count):
        kind, _, offset, address, _, file_size = struct.unpack_from(
            "<IIQQQQ", data, table + index * entry_size
        )
        if kind == _PT_LOAD:
            loads.append((address, offset, file_size))
        elif kind == _PT_DYNAMIC:
            dynamic = (offset, file_size)
        elif kind == _PT_INTERP:
            interpreter = data[offset : offset + file_size].rstrip(b"\0").decode(errors="replace")
    if dynamic is None:
        return Linkage(interpreter, ())
    names: list[int] = []
    strings = 0
    for offset in range(dynamic[0], dynamic[0] + dynamic[1], 16):
        tag, value = struct.unpack_from("<QQ", data, offset)
        if tag == 0:
            break
        if tag == _DT_NEEDED:
            names.append(value)
        elif tag == _DT_STRTAB:
            strings = value
    base = _file_offset(loads, strings)
    return Linkage(interpreter, tuple(_string(data, base + name) for name in names))


def _file_offset(loads: list[tuple[int, int, int]], address: int) -> int:
    for start, offset, size in loads:
        if start <= address < start + size:
            return address - start + offset
    raise NotElf("damaged ELF file: the string table lies in no segment")


def _string(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode(errors="replace") if start < len(data) else ""


def find_library(root: Path, name: str) -> Path | None:
    """`name` in the library directories of an unpacked package tree."""
    for place in _LIBRARY_DIRS:
        path = root / place / name
        if "/" not in name and path.is_file():
            return path
    return None


def closure(programs: list[Path], find: Callable[[str], Path | None]) -> tuple[dict[str, Path], set[str]]:
    """Every library that `programs` need, directly or through another: ({name: file}, missing names).

    The loader named by a program is among them, by the last part of its path.
    """
    found: dict[str, Path] = {}
    missing: set[str] = set()
    queue = list(programs)
    while queue:
        link = linkage(queue.pop().read_bytes())
        wanted = list(link.needed)
        if link.interpreter:
            wanted.append(link.interpreter.rsplit("/", 1)[-1])
        for name in wanted:
            if name in found or name in missing:
                continue
            path = find(name)
            if path is None:
                missing.add(name)
            else:
                found[name] = path
                queue.append(path)
    return found, missing
