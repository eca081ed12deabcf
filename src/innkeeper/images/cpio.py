"""Writes the `newc` cpio format, the one the Linux kernel unpacks as an initramfs.

Written here instead of by `cpio` so that device nodes, ownership and time stamps are whatever the
image needs: no root, and the same input gives the same bytes. The format is the one in
Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, Final

_TRAILER: Final = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One member, always owned by root and dated 1970-01-01. `path` has no leading slash."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | permissions)


def regular(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def char_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | permissions, device=(major, minor))


def write_cpio(out: BinaryIO, entries: Iterable[Entry]) -> None:
    """Write `entries` in order of path, with the parent directories that they leave out.

    Raises ValueError for an absolute path, a `..` or a path given twice.
    """
    known: dict[str, Entry] = {}
    for entry in entries:
        if entry.path.startswith("/") or ".." in entry.path.split("/") or entry.path in ("", _TRAILER):
            raise ValueError(f"not a path for an archive member: {entry.path!r}")
        if entry.path in known:
            raise ValueError(f"archive member given twice: {entry.path}")
        known[entry.path] = entry
    for path in list(known):
        while path := os.path.dirname(path):
            known.setdefault(path, directory(path))
    # The kernel makes no directories by itself; byte order puts each one before what it holds.
    for number, path in enumerate(sorted(known), start=1):
        _write_member(out, number, known[path])
    _write_member(out, 0, Entry(_TRAILER, 0))


def _write_member(out: BinaryIO, inode: int, entry: Entry) -> None:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % value for value in fields)
    out.write(_padded(header + name))
    out.write(_padded(entry.data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
