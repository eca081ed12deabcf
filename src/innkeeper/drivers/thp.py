"""Transparent huge pages of the programs we start."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Final

# include/uapi/linux/prctl.h; the setting is the process's and is inherited over fork and exec (prctl(2)).
_PR_SET_THP_DISABLE: Final = 41
_PR_GET_THP_DISABLE: Final = 42


@contextlib.contextmanager
def denied() -> Iterator[None]:
    """Programs started inside get no transparent huge pages. Where the kernel has no such switch, nothing
    happens."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = libc.prctl(_PR_GET_THP_DISABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_THP_DISABLE, max(before, 0), 0, 0, 0)
