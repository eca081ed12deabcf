"""The end of a log file, fit for an error message."""

from __future__ import annotations

import os
from pathlib import Path


def last_lines(path: Path, count: int, limit_bytes: int = 8192) -> str:
    """The last non-empty lines of a log file as one line."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - limit_bytes))
            text = log.read(limit_bytes).decode(errors="replace")
    except OSError:
        return ""
    lines = ["".join(ch for ch in line if ch.isprintable()).strip() for line in text.splitlines()]
    return " | ".join([line for line in lines if line][-count:])
