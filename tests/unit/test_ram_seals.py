"""RAM files at and after a moment: what the kernel refuses from then on."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from innkeeper.engine.base import LaunchPlan
from innkeeper.engine.memory import DimmPlan, MemoryPlan, Ram
from innkeeper.engine.qemu import ram
from innkeeper.errors import EngineError
from innkeeper.units import MiB

_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE (linux/falloc.h)
_libc = ctypes.CDLL(None, use_errno=True)


def punch(fd: int) -> int:
    """As QEMU's balloon does; the error number, 0 when the page is gone."""
    failed = _libc.fallocate64(fd, _PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(4096))
    return ctypes.get_errno() if failed else 0


@pytest.fixture
def files() -> Iterator[Ram]:
    memory = MemoryPlan(dimms=(DimmPlan(0, 2 * MiB),))
    plan = LaunchPlan("u", "web", 1, "qemu", "q35", "tcg", "max", 1, 4 * MiB, memory=memory)
    made = ram.create(plan)
    for fd in made.parts.values():
        os.pwrite(fd, b"kept", 0)
    yield made
    made.close()


def test_a_running_vms_balloon_gives_pages_back(files: Ram) -> None:
    assert not ram.is_sealed(files)
    assert [punch(fd) for fd in files.parts.values()] == [0, 0]
    assert files.used_bytes == 0


def test_from_its_moment_on_no_page_can_be_taken_out(files: Ram) -> None:
    main = files.parts["ram0"]
    with mmap.mmap(main, 4 * MiB) as view:
        ram.protect(files)
        ram.protect(files)  # as for its next moment, when the first one came to nothing
        assert ram.is_sealed(files)
        for fd in files.parts.values():
            assert punch(fd) == errno.EPERM
            assert os.pread(fd, 4, 0) == b"kept"
        with pytest.raises(PermissionError):
            os.pwrite(main, b"no", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(main, 4 * MiB).close()
        view[0:4] = b"runs"  # the VM itself, if nobody takes over from it
        assert os.pread(main, 4, 0) == b"runs"
        with mmap.mmap(main, 4 * MiB, flags=mmap.MAP_PRIVATE) as copy:
            copy[0:4] = b"mine"
            assert os.pread(main, 4, 0) == b"runs"
        with pytest.raises(EngineError):
            ram.seal(files)  # as long as the old process has it
    ram.seal(files)
    assert punch(main) == errno.EPERM
