"""What commands print. Plain strings: a library that draws tables takes longer to import than
`inn list` may take altogether."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def clean(value: object) -> str:
    """A value for one cell or line. Guests name their addresses and images their origins, so control
    characters, which could steer the terminal, are shown instead of sent."""
    text = "" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their content, and `-` where there is none."""
    cells = [[clean(cell) or "-" for cell in row] for row in rows]
    widths = [max([len(title), *(len(row[i]) for row in cells)]) for i, title in enumerate(titles)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in ([list(titles), *cells])
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def print_pairs(pairs: Sequence[tuple[str, object]]) -> None:
    """`name:  value` lines, without those that have no value."""
    shown = [(name, clean(value)) for name, value in pairs if value not in (None, "", [], {}, ())]
    width = max((len(name) for name, _ in shown), default=0) + 1
    for name, value in shown:
        print(f"{name + ':':<{width}}  {value}")


def age(since: object) -> str:
    """How long ago, in one unit: `12s`, `5m`, `3h`, `2d`."""
    if not isinstance(since, int | float) or not since:
        return ""
    seconds = max(0, int(time.time() - since))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length or (unit != "m" and seconds >= length):
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def write_bytes(data: bytes) -> None:
    """To standard output as it is, at once, whatever came before through print()."""
    sys.stdout.flush()
    _write_all(1, data)


def write_error_bytes(data: bytes) -> None:
    sys.stderr.flush()
    _write_all(2, data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
