"""A screen that is drawn again and again, and keys that are read meanwhile."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from innkeeper.cli.interrupts import orderly_signals
from innkeeper.cli.output import write_bytes
from innkeeper.cli.terminal import raw_mode

# The alternate screen, so that what was there before comes back; no cursor; no line wrap.
_ENTER: Final = b"\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE: Final = b"\x1b[?7h\x1b[?25h\x1b[?1049l"
# What arrows, function keys and the like send (ECMA-48: CSI; SS3 of old terminals).
_SEQUENCE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.)")
# A terminal that changes its size tells only by a signal: look instead, now and then.
_LOOK_S: Final = 0.25


class Screen:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._typed = ""
        self.resized()

    @property
    def width(self) -> int:
        return self._size[0]

    @property
    def height(self) -> int:
        return self._size[1]

    def resized(self) -> bool:
        """Whether its size is another one than at the last look."""
        before = getattr(self, "_size", None)
        try:
            columns, lines = os.get_terminal_size(self._fd)
        except OSError:
            columns, lines = 0, 0
        # A terminal that does not know its size says 0.
        self._size = (max(20, columns or 80), max(4, lines or 24))
        return before != self._size

    def draw(self, lines: Sequence[str], *, title: int = -1) -> None:
        """All of it at once, so that nothing flickers; the line number `title` in reverse video."""
        shown = []
        for number, line in enumerate(lines[: self.height]):
            text = line[: self.width]
            if number == title:
                text = f"\x1b[7m{text.ljust(self.width)}\x1b[0m"
            shown.append(text + "\x1b[K")
        write_bytes(("\x1b[H" + "\r\n".join(shown) + "\x1b[J").encode(errors="replace"))

    def key(self, timeout_s: float) -> str:
        """The next key, or nothing after `timeout_s` or when the size has changed. Keys that send several
        bytes (arrows) are none of ours."""
        while True:
            if self._typed:
                key, self._typed = self._typed[0], self._typed[1:]
                return key
            ready, _, _ = select.select([self._fd], [], [], min(timeout_s, _LOOK_S))
            if ready:
                data = os.read(self._fd, 64)
                if not data:
                    return "q"  # the terminal has gone
                self._typed = _SEQUENCE.sub("", data.decode(errors="replace"))
                continue
            timeout_s -= _LOOK_S
            if timeout_s <= 0 or self.resized():
                return ""


@contextmanager
def live_screen(fd: int) -> Iterator[Screen]:
    with orderly_signals(), raw_mode(fd):
        try:
            write_bytes(_ENTER)
            yield Screen(fd)
        finally:
            write_bytes(_LEAVE)
