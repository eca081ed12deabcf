"""The files of control groups: the seam between the driver and the kernel (cgroups(7))."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

_READ_BYTES: Final = 16384


class Files(Protocol):
    """Raises OSError, as the kernel does."""

    def read(self, path: Path) -> str: ...
    def write(self, path: Path, text: str) -> None:
        """In one write(2), which is how the kernel takes a value; the file must be there."""

    def mkdir(self, path: Path) -> None: ...
    def rmdir(self, path: Path) -> None:
        """Of a group; its files go with it. EBUSY while a process or a child is in it."""

    def is_dir(self, path: Path) -> bool: ...
    def children(self, path: Path) -> Iterable[Path]:
        """The groups in a group; none if it is not there."""


class SystemFiles:
    def read(self, path: Path) -> str:
        # Not through a file object: every VM's are read every few seconds, and this takes a third as long.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(fd, _READ_BYTES):
                parts.append(part)
        finally:
            os.close(fd)
        return b"".join(parts).decode(errors="replace")

    def write(self, path: Path, text: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def mkdir(self, path: Path) -> None:
        path.mkdir(mode=0o755)

    def rmdir(self, path: Path) -> None:
        path.rmdir()

    def is_dir(self, path: Path) -> bool:
        return path.is_dir()

    def children(self, path: Path) -> Iterable[Path]:
        try:
            with os.scandir(path) as entries:
                return [path / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return []
