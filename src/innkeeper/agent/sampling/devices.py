"""Which block device of the host is under a file: where VMs get in each other's way."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

_FOLLOWED: Final = 8  # devices upon devices; more is a loop


class Devices:
    """Remembers what it found. `root` has the host's /proc and /sys."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._known: dict[int, str] = {}

    def under(self, path: Path) -> str:
        """`vda`, `nvme0n1`; the whole device for a partition, and what a logical volume lies on if that is
        one device. Of a file system without a device its type, such as `tmpfs` or `nfs4`; empty: not
        known."""
        try:
            found = os.stat(path)
        except OSError:
            return ""
        number = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
        if number not in self._known:
            self._known[number] = self._named(number) or self._mounted(path)
        return self._known[number]

    def _named(self, number: int) -> str:
        link = self._root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
        if not link.exists():
            return ""
        folder = link.resolve()
        for _ in range(_FOLLOWED):
            if (folder / "partition").exists():
                folder = folder.parent
            below = _listed(folder / "slaves")
            if len(below) != 1:
                break
            folder = (folder / "slaves" / below[0]).resolve()
        return folder.name

    def _mounted(self, path: Path) -> str:
        """By the mount table: btrfs and others give their files numbers that are no device's."""
        real, best, name = os.path.realpath(path), "", ""
        with contextlib.suppress(OSError, ValueError):
            for line in (self._root / "proc/self/mountinfo").read_text().splitlines():
                before, _, after = line.partition(" - ")
                place, (kind, source) = before.split()[4], after.split()[:2]
                inside = real == place or real.startswith(place.rstrip("/") + "/")
                if inside and len(place) >= len(best):
                    best, name = place, self._of_source(source) or kind
        return name

    def _of_source(self, source: str) -> str:
        if not source.startswith("/dev/"):
            return ""
        try:
            return self._named(os.stat(source).st_rdev)
        except OSError:
            return ""


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
