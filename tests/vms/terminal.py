"""A person at a terminal, for commands that want one."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Sequence
from typing import Any

from vms.cli import Inn

CTRL_BRACKET = b"\x1d"


class Terminal:
    """A command on a pseudo terminal: `expect` what it shows, `type` keys, and see how it leaves."""

    def __init__(self, inn: Inn, words: Sequence[str]) -> None:
        self._master, slave = pty.openpty()
        self._slave = slave
        self.before = termios.tcgetattr(slave)
        self.shown = b""
        self.process = subprocess.Popen(
            inn.argv(*words), stdin=slave, stdout=slave, stderr=slave, start_new_session=True, **inn.how()
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def expect(self, text: bytes, deadline_s: float = 20.0) -> bytes:
        """Read until `text` has been shown; what was shown up to its end is taken away."""
        end = time.monotonic() + deadline_s
        while text not in self.shown:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} was not shown; this was: {self.shown[-2000:]!r}"
            if select.select([self._master], [], [], left)[0]:
                self.shown += os.read(self._master, 65536)
        found, _, self.shown = self.shown.partition(text)
        return found + text

    def left(self, deadline_s: float = 10.0) -> int:
        """Its exit status, and the terminal must be as it was before."""
        status = self.process.wait(deadline_s)
        while select.select([self._master], [], [], 0)[0]:
            self.shown += os.read(self._master, 65536)
        assert _without_pending(termios.tcgetattr(self._slave)) == _without_pending(self.before)
        return status


def _without_pending(attributes: list[Any]) -> list[Any]:
    """PENDIN (lflag) is a state of the line, not a setting."""
    attributes = list(attributes)
    attributes[3] &= ~termios.PENDIN
    return attributes
