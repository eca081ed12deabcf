"""Guest RAM as a memory file (memfd_create(2)).

Every VM's RAM is one, mapped shared, so that it can be forked at any time without preparation: the
frozen file becomes the common ground of parent and children, each of which maps it privately and
copies only the pages it writes. Nobody has to count references: the kernel frees the file with the
last process that has it, whatever was killed in between.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from innkeeper.errors import EngineError, NoCapacity

NAME: Final = "innkeeper-ram"


def create(size_bytes: int) -> int:
    """A descriptor of new, empty RAM. It takes memory only as the guest touches it."""
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError as error:
        os.close(fd)
        raise NoCapacity(f"Cannot make {size_bytes} bytes of guest RAM: {error.strerror}") from error
    return fd


def of_process(pid: int, proc: Path = Path("/proc")) -> int:
    """A descriptor of the RAM of a running QEMU that an earlier daemon started."""
    try:
        for entry in (proc / str(pid) / "fd").iterdir():
            if os.readlink(entry).startswith(f"/memfd:{NAME}"):
                return os.open(entry, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise EngineError(f"Cannot look into QEMU (pid {pid}): {error.strerror}") from error
    raise EngineError(f"QEMU (pid {pid}) has no RAM of ours", hint="restart the instance, then try again")


def seal(fd: int) -> None:
    """Nobody writes to this RAM any more, not even a hostile QEMU: what children share stays as it is.

    Also the guard against QEMU's balloon and free page reporting, which would punch holes into the
    file under all of them. Raises EngineError while a shared writable mapping is left.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    except OSError as error:
        raise EngineError(f"Guest RAM cannot be sealed: {error.strerror}") from error
