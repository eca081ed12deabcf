"""Output of several commands at once: whole lines, each behind the name of where it comes from."""

from __future__ import annotations

import threading

from innkeeper.cli.output import clean, write_bytes, write_error_bytes

STDOUT = 1
# A line that does not end: it is shown in pieces.
_LINE_MAX = 64 * 1024


class Prefixed:
    """`write` may be called from several threads; stdout goes to stdout, stderr to stderr."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rest: dict[tuple[int, str, int], bytes] = {}

    def write(self, index: int, name: str, stream: int, data: bytes) -> None:
        with self._lock:
            key = index, name, stream
            *lines, rest = (self._rest.get(key, b"") + data).split(b"\n")
            if len(rest) > _LINE_MAX:
                lines, rest = [*lines, rest], b""
            self._rest[key] = rest
            self._put(name, stream, lines)

    def end(self) -> None:
        """Show last lines that had no end."""
        with self._lock:
            for (_, name, stream), rest in self._rest.items():
                if rest:
                    self._put(name, stream, [rest])
            self._rest.clear()

    def _put(self, name: str, stream: int, lines: list[bytes]) -> None:
        head = f"{clean(name)} | ".encode()
        text = b"".join(head + line + b"\n" for line in lines)
        if text:
            (write_bytes if stream == STDOUT else write_error_bytes)(text)
