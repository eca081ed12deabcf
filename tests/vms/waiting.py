"""Looking again until something is so. For what sends no event: files, /proc, processes of others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# How many times longer everything may take than on an ordinary machine; the nested lab is emulated.
PATIENCE = float(os.environ.get("INNKEEPER_TEST_PATIENCE", "1"))


def eventually(check: Callable[[], T], what: str, deadline_s: float = 10.0, every_s: float = 0.01) -> T:
    """The first true answer of `check`; AssertionError, with the last answer, at the deadline."""
    deadline_s *= PATIENCE
    every_s *= min(PATIENCE, 10.0)  # where all is slow, looking is, too, and takes its share of the CPU
    end = time.monotonic() + deadline_s
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}; at the end: {answer!r}")
        time.sleep(every_s)
