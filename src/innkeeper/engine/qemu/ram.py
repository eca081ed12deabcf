"""Guest RAM as memory files (memfd_create(2)).

Every VM's RAM is one or several, mapped shared, so that it can be forked at any time without preparation:
the frozen files become the common ground of parent and children, each of which maps them privately and
copies only the pages it writes. Nobody has to count references: the kernel frees a file with the last
process that has it, whatever was killed in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from innkeeper.drivers import numa
from innkeeper.engine.base import LaunchPlan
from innkeeper.engine.memory import MAIN_RAM, Ram, RamPlan
from innkeeper.errors import EngineError, NoCapacity
from innkeeper.units import format_size, human_size

NAME: Final = "innkeeper-ram"
# The page size as a power of two, in the upper bits of the flags (memfd_create(2), MFD_HUGE_2MB).
_HUGE_SHIFT: Final = 26
# fcntl(2), since Linux 5.1; mm/shmem.c, shmem_fallocate: no holes either.
F_SEAL_FUTURE_WRITE: Final = 0x0010


def create(plan: LaunchPlan) -> Ram:
    """New, empty RAM for it. Ordinary pages take memory only as the guest touches them."""
    made: dict[str, int] = {}
    try:
        for piece in plan.pieces:
            made[piece.id] = create_piece(piece, plan.memory.page_bytes)
    except BaseException:
        Ram(made).close()
        raise
    return Ram(made)


def create_piece(piece: RamPlan, page_bytes: int = 0) -> int:
    """A descriptor of one piece. Huge pages are reserved for it at once: what is not there is refused here,
    and not by a signal that ends the guest when it touches the page."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if page_bytes:
        flags |= os.MFD_HUGETLB | (page_bytes.bit_length() - 1) << _HUGE_SHIFT
    name = NAME if piece.id == MAIN_RAM else f"{NAME}:{piece.id}"
    try:
        fd = os.memfd_create(name, flags)
    except OSError as error:
        raise NoCapacity(f"Cannot make guest RAM: {error.strerror}") from error
    try:
        os.ftruncate(fd, piece.size_bytes)
        if page_bytes:
            mmap.mmap(fd, piece.size_bytes).close()
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        if piece.host_nodes:
            numa.bind_file(fd, piece.host_nodes, piece.policy)
    except OSError as error:
        os.close(fd)
        what = f"{format_size(page_bytes)} huge pages for " if page_bytes else ""
        raise NoCapacity(
            f"Cannot make {what}{human_size(piece.size_bytes)} of guest RAM: {error.strerror}",
            hint="see what is free: inn host show",
        ) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def of_process(pid: int, proc: Path = Path("/proc")) -> Ram:
    """The RAM of a running QEMU that an earlier daemon started."""
    found: dict[str, int] = {}
    try:
        for entry in (proc / str(pid) / "fd").iterdir():
            name = os.readlink(entry).removesuffix(" (deleted)").removeprefix("/memfd:")
            stem, _, piece = name.partition(":")
            if stem == NAME and (piece or MAIN_RAM) not in found:
                found[piece or MAIN_RAM] = os.open(entry, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        Ram(found).close()
        raise EngineError(f"Cannot look into QEMU (pid {pid}): {error.strerror}") from error
    if not found:
        raise EngineError(f"QEMU (pid {pid}) has no RAM of ours", hint="restart the instance, then try again")
    return Ram(found)


def give_back(ram: Ram, names: Collection[str]) -> None:
    """What these pieces have taken of the host, though somebody has the file open: nobody may use it now."""
    for name in names:
        fd = ram.parts[name]
        with contextlib.suppress(OSError), mmap.mmap(fd, os.fstat(fd).st_size) as view:
            view.madvise(mmap.MADV_REMOVE)


def protect(ram: Ram) -> None:
    """Of a VM that stands still at a moment: from here on nobody takes pages out of its RAM, and nobody new
    writes to it. QEMU's balloon (and free page reporting) of a process with a private view would: up to 7.2
    it punches holes into the file under all others that share it. The one mapping that there is stays
    writable, so that the VM can go on itself where nobody takes over; its balloon then frees nothing."""
    for fd in ram.parts.values():
        with contextlib.suppress(OSError):  # before Linux 5.1 there is no such seal; `seal` follows
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)


def is_sealed(ram: Ram) -> bool:
    """Whether some of it stays as it is: pages of it cannot be given back."""
    return any(
        fcntl.fcntl(fd, fcntl.F_GET_SEALS) & (fcntl.F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)
        for fd in ram.parts.values()
    )


def seal(ram: Ram) -> None:
    """Nobody writes to this RAM any more, not even a hostile QEMU: what children share stays as it is.
    Raises EngineError while a shared writable mapping is left."""
    try:
        for fd in ram.parts.values():
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    except OSError as error:
        raise EngineError(f"Guest RAM cannot be sealed: {error.strerror}") from error
