"""The host's pools of huge pages, through sysfs (Documentation/admin-guide/mm/hugetlbpage.rst).

The kernel takes the number it is told as a wish: it reserves as many pages as it finds room for in one
piece, and says nothing. So the number is read back, and a shortfall undone.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from innkeeper.errors import NoCapacity, NotFound, Unsupported, WrongState
from innkeeper.units import format_size, human_size

_HINT = "see inn host show"


@dataclass(frozen=True)
class Pool:
    """One size, on one NUMA node or on the whole host."""

    directory: Path
    page_bytes: int

    @property
    def total(self) -> int:
        return self._number("nr_hugepages")

    @property
    def unused(self) -> int:
        """Pages nobody has, nor was promised."""
        return self._number("free_hugepages") - self._number("resv_hugepages")

    def _number(self, name: str) -> int:
        try:
            return int((self.directory / name).read_text())
        except (OSError, ValueError):
            return 0

    def write(self, pages: int) -> None:
        (self.directory / "nr_hugepages").write_text(f"{pages}\n")


def pool(page_bytes: int, node: int | None = None, root: Path = Path("/")) -> Pool:
    """Raises NotFound for a node, Unsupported for a size that this host does not have."""
    top = root / "sys/kernel/mm/hugepages"
    if node is not None:
        place = root / f"sys/devices/system/node/node{node}"
        if not place.is_dir():
            raise NotFound(f"This host has no NUMA node {node}", hint=_HINT)
        top = place / "hugepages"
    directory = top / f"hugepages-{page_bytes // 1024}kB"
    if not directory.is_dir():
        sizes = sorted(int(one.name[10:-2]) * 1024 for one in top.glob("hugepages-*kB"))
        known = ", ".join(format_size(size) for size in sizes) or "none"
        raise Unsupported(
            f"This host has no huge pages of {format_size(page_bytes)}", hint=f"it has: {known}"
        )
    return Pool(directory, page_bytes)


def resize(chosen: Pool, pages: int, available_bytes: int) -> int:
    """Make the pool so large; what it really is then. Blocks while the kernel makes room.

    `available_bytes` is the memory that may be taken for it. Raises NoCapacity with the number missing when
    there is too little, or too little in one piece: the pool is then as it was. WrongState when pages that
    would have to go are in use; Unsupported without the right to do it.
    """
    before, size = chosen.total, chosen.page_bytes
    used = before - chosen.unused
    if pages < used:
        raise WrongState(
            f"{used} huge pages of {format_size(size)} are in use, so that {pages} are too few",
            hint="stop the instances that use them, or keep as many",
        )
    more = (pages - before) * size
    if more > available_bytes:
        fits = before + available_bytes // size
        raise NoCapacity(
            f"{pages} huge pages of {format_size(size)} need {human_size(more)} more, and "
            f"{human_size(available_bytes)} is available: {pages - fits} pages too many",
            hint=f"at most {fits} fit now",
            details={"missing": pages - fits, "most": fits},
        )
    try:
        chosen.write(pages)
    except PermissionError:
        raise Unsupported(
            "Only root may reserve huge pages", hint="run the daemon as root, or have root do it"
        ) from None
    except OSError as error:
        raise NoCapacity(f"The kernel does not reserve {pages} huge pages: {error.strerror}") from error
    got = chosen.total
    if got < pages:
        with contextlib.suppress(OSError):
            chosen.write(before)
        raise NoCapacity(
            f"The kernel found {got} of {pages} huge pages of {format_size(size)}: {pages - got} are "
            "missing, since free memory is in pieces; nothing was changed",
            hint=f"ask for at most {got}, or reserve them soon after a boot",
            details={"missing": pages - got, "most": got},
        )
    return got
