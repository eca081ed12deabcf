"""Logging: one line per record on stderr.

    2026-01-31T12:00:00.123Z INFO api: started name=web pid=4711

Components log with `logging.getLogger("innkeeper.<component>")` and give values as
``extra=fields(name=..., pid=...)``. No secrets: fields whose names tell of one are masked.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Mapping
from typing import IO, Any, Final

ROOT: Final = "innkeeper"
MAX_VALUE_CHARS: Final = 2000  # a line stays a line, whatever a guest or a program said

_SECRET: Final = re.compile(r"passw|secret|token|credential|private|user_data|authorization", re.IGNORECASE)
_PLAIN: Final = re.compile(r"[^\s\"=]+")


def fields(**values: object) -> dict[str, Any]:
    """Values of a record, for the `extra` of a logging call."""
    return {"innkeeper_fields": values}


def setup(level: int | str = logging.INFO, stream: IO[str] | None = None) -> None:
    """Send everything below `innkeeper` to stderr, one line each; may be called again."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter())
    logger = logging.getLogger(ROOT)
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


class LineFormatter(logging.Formatter):
    """One line per record, the traceback of an exception included."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        component = record.name.removeprefix(ROOT + ".")
        parts = [
            f"{stamp}.{int(record.msecs):03d}Z {record.levelname} {component}: {_line(record.getMessage())}"
        ]
        values = getattr(record, "innkeeper_fields", None)
        if isinstance(values, Mapping):
            parts += [f"{key}={_value(str(key), value)}" for key, value in values.items()]
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(record.exc_info[1])).strip()
            parts.append(f"traceback={_quoted(trace, limit=8 * MAX_VALUE_CHARS)}")
        return " ".join(parts)


def _line(text: str) -> str:
    return " ".join(text.split())


def _value(key: str, value: object) -> str:
    if _SECRET.search(key):
        return "***"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MAX_VALUE_CHARS and _PLAIN.fullmatch(text) else _quoted(text)


def _quoted(text: str, limit: int = MAX_VALUE_CHARS) -> str:
    if len(text) > limit:
        text = text[:limit] + "..."
    escaped = text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{escaped}"'
