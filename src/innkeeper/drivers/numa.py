"""Where the pages of a memory file lie: a NUMA policy for the file itself.

The policy of a shared mapping of tmpfs and hugetlbfs belongs to the file, not to whoever set it (mbind(2);
Documentation/admin-guide/mm/numa_memory_policy.rst, "Shared Policy"): every process that touches a page
first gets it from there. So the daemon can bind a guest's RAM before QEMU has it, and QEMU need not be
built with libnuma.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from collections.abc import Sequence
from typing import Final

from innkeeper.errors import Unsupported

_SYS_MBIND: Final = {"x86_64": 237, "aarch64": 235, "riscv64": 235}  # the kernel's unistd headers
_MODES: Final = {"preferred": 1, "bind": 2, "interleave": 3}  # linux/mempolicy.h
_BITS: Final = 8 * ctypes.sizeof(ctypes.c_ulong)


def bind_file(fd: int, nodes: Sequence[int], policy: str) -> None:
    """Have the pages of the memory file `fd` that nobody has touched yet come from `nodes`. Raises
    Unsupported when this kernel or host cannot."""
    number = _SYS_MBIND.get(platform.machine())
    if number is None:
        raise Unsupported(f"Memory cannot be bound to NUMA nodes on {platform.machine()}")
    size = os.fstat(fd).st_size
    mask = (ctypes.c_ulong * (max(nodes) // _BITS + 1))()
    for node in nodes:
        mask[node // _BITS] |= 1 << (node % _BITS)
    with mmap.mmap(fd, size) as mapping:
        view = ctypes.c_char.from_buffer(mapping)
        libc = ctypes.CDLL(None, use_errno=True)
        # maxnode counts one more than the bits that are looked at (mbind(2), as libnuma has it, too).
        arguments = (ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_ulong(size))
        result = libc.syscall(
            ctypes.c_long(number), *arguments, ctypes.c_int(_MODES[policy]), mask,
            ctypes.c_ulong(len(mask) * _BITS + 1), ctypes.c_uint(0),
        )  # fmt: skip
        failure = ctypes.get_errno()
        del view
    if result != 0:
        known = ", ".join(str(node) for node in nodes)
        why = "there is no such node" if failure == errno.EINVAL else os.strerror(failure)
        raise Unsupported(f"Memory cannot be bound to NUMA node {known}: {why}", hint="see inn host show")
