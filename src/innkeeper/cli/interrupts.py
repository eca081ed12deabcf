"""Ctrl-C, SIGTERM and SIGHUP end a command in the same orderly way, through its `finally` blocks."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    # main() exits with the argument: 128 + signal, as a shell reports it.
    raise KeyboardInterrupt(128 + number)


@contextmanager
def orderly_signals() -> Iterator[None]:
    """Within, SIGTERM and a closed terminal are raised like ctrl-C."""
    before = {number: signal.signal(number, _raise) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
