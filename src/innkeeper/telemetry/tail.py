"""The end of a log file, fit for an error message."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

# Linux, kernel/panic.c: what it begins and, once all is dumped, ends with.
_PANIC: Final = "Kernel panic - not syncing"
_PANIC_END: Final = "---[ end "
_WORDS_AFTER: Final = 3  # lines that a kernel in panic, or the firmware after it, may still say
_STAMP: Final = re.compile(r"^\[ *\d+\.\d+\](\[ *[TC]\d+\])? *")


def last_lines(path: Path, count: int, limit_bytes: int = 8192) -> str:
    """The last non-empty lines of a log file as one line."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - limit_bytes))
            text = log.read(limit_bytes).decode(errors="replace")
    except OSError:
        return ""
    return " | ".join(printable_lines(text)[-count:])


def printable_lines(text: str) -> list[str]:
    """The lines that have something, without what a terminal would obey."""
    lines = ["".join(ch for ch in line if ch.isprintable()).strip() for line in text.splitlines()]
    return [line for line in lines if line]


def panic_words(text: str) -> list[str]:
    """Of a serial console: the line of the last panic of a Linux kernel, and what was said right before it,
    which is often why. Not the dump of registers and calls behind it. Empty when there was none, or when
    another boot was begun since."""
    lines = [_STAMP.sub("", line) for line in printable_lines(text)]
    at = [n for n, line in enumerate(lines) if _PANIC in line and not line.startswith(_PANIC_END)]
    ends = [n for n, line in enumerate(lines) if line.startswith(_PANIC_END)]
    if not at or (ends and ends[-1] > at[-1] and len(lines) - ends[-1] > _WORDS_AFTER):
        return []
    return lines[max(0, at[-1] - 1) : at[-1] + 1]


def read_tail(path: Path, count: int) -> bytes:
    """The last `count` bytes of a file; nothing of one that is not there."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - count))
            return file.read(count)
    except FileNotFoundError:
        return b""
