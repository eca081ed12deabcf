"""What a child is started with that only its parent can set: it has it from us at the instant it starts.

Used around one `Runner.spawn`, which returns when the program runs; nothing else is started meanwhile.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from typing import Final

# What QEMU maps beside guest RAM: code, stacks, 1 GiB for translated code under TCG.
BESIDE_RAM_BYTES: Final = 2 << 30


@contextlib.contextmanager
def given(*, lock_memory: bool = False) -> Iterator[None]:
    """`lock_memory`: it may lock as much memory as we can allow it."""
    with contextlib.ExitStack() as undo:
        if lock_memory:
            before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
            _allow_all(before)
            undo.callback(resource.setrlimit, resource.RLIMIT_MEMLOCK, before)
        yield


def lockable_bytes() -> int | None:
    """How much memory a child of ours may lock; None: any amount. Root in a container may lack the right
    to raise its limits (CAP_SYS_RESOURCE): what counts is whether it works."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        _allow_all(before)
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
    return None if hard == resource.RLIM_INFINITY else hard


def _allow_all(before: tuple[int, int]) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (before[1], before[1]))
