"""The terminal of a person: raw mode that is always undone, and keys to leave."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from innkeeper.cli.app import App
from innkeeper.cli.interrupts import orderly_signals
from innkeeper.cli.output import write_bytes
from innkeeper.errors import BadRequest

DEFAULT_ESCAPE: Final = "ctrl-]"
# Colours off and cursor shown, whatever the guest left behind.
_RESET: Final = b"\x1b[0m\x1b[?25h\r\n"


def parse_escape(text: str) -> bytes:
    """The byte of `ctrl-]`, `^]` or a single character; empty for `none`."""
    if text.lower() == "none":
        return b""
    key = text
    for prefix in ("ctrl-", "Ctrl-", "ctrl+", "C-", "^"):
        if text.startswith(prefix) and len(text) == len(prefix) + 1:
            key = chr(ord(text[-1].upper()) & 0x1F) if "@" <= text[-1].upper() <= "_" else ""
            break
    if len(key) != 1 or not key.isascii():
        raise BadRequest(f"Not a key: {text!r}", hint="write it like ctrl-] or ^a, or none")
    return key.encode()


def stdin_fd() -> int | None:
    """Standard input, or None where it was closed: its number may then belong to something else."""
    return None if sys.stdin is None else 0


def at_terminal() -> bool:
    """Whether a person sits in front of us, who can type and read."""
    return stdin_fd() is not None and os.isatty(0) and os.isatty(1)


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Every key goes through as it is, ctrl-C included. Restored on each way out."""
    import termios
    import tty

    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def attach(app: App, name: str, *, escape: str = DEFAULT_ESCAPE, timeout_s: float | None = None) -> bool:
    """Put this terminal (or pipe) on the console of a VM. True when the user left, False when the
    console ended."""
    key = parse_escape(escape)
    fd = stdin_fd()
    instance = app.instance(name)
    if fd is None or not os.isatty(fd):
        with orderly_signals():
            return instance.console(output=write_bytes, stdin=fd, timeout_s=timeout_s)

    def greet() -> None:
        leave = f"; {escape} detaches" if key else ""
        print(f"inn: attached to {name}{leave}", end="\r\n", file=sys.stderr, flush=True)

    try:
        with orderly_signals(), raw_mode(fd):
            return instance.console(
                output=write_bytes, stdin=fd, escape=key, timeout_s=timeout_s, on_open=greet
            )
    finally:
        if os.isatty(1):
            write_bytes(_RESET)
