"""Progress for a person at a terminal, on stderr; nothing at all, or plain lines, elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from innkeeper.cli.output import clean
from innkeeper.errors import InnkeeperError

_TICK_S = 0.1
_BAR = 24


@contextmanager
def busy(text: str, *, after_s: float = 0.3) -> Iterator[None]:
    """Show `text` and the seconds that have passed while the body runs; nothing for quick ones."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()

    def tick() -> None:
        begin = time.monotonic()
        if done.wait(after_s):
            return
        while not done.wait(_TICK_S):
            sys.stderr.write(f"\r\033[K{text} {time.monotonic() - begin:.1f} s")
            sys.stderr.flush()
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Stages:
    """Progress events {"stage", "fraction", "detail"}: a bar on a terminal, else a line per stage."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._stage = ""

    def show(self, event: dict[str, Any]) -> None:
        stage, detail = clean(event.get("stage")), clean(event.get("detail"))
        if self._tty:
            self._draw(stage, detail, event.get("fraction"))
        elif stage != self._stage:
            print(f"{stage}: {detail}" if detail else stage, file=sys.stderr, flush=True)
        self._stage = stage

    def _draw(self, stage: str, detail: str, fraction: object) -> None:
        import shutil

        if stage != self._stage and self._stage:
            sys.stderr.write("\n")
        line = f"{stage:<16} "
        if isinstance(fraction, int | float):
            share = min(1.0, max(0.0, float(fraction)))
            full = round(share * _BAR)
            line += f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%} "
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\033[K{(line + detail)[:width]}")
        sys.stderr.flush()

    def end(self) -> None:
        if self._tty and self._stage:
            sys.stderr.write("\n")
            sys.stderr.flush()


@contextmanager
def watched(look: Callable[[], dict[str, Any] | None], *, every_s: float = 0.3) -> Iterator[None]:
    """Ask `look` for a progress event now and then while the body runs, and draw it; on a terminal only, and
    nothing for what is quick. What `look` raises of ours is as no event."""
    if not sys.stderr.isatty():
        yield
        return
    stages, done = Stages(), threading.Event()

    def draw() -> None:
        while not done.wait(every_s):
            with suppress(InnkeeperError):
                event = look()
                if event is not None and not done.is_set():
                    stages.show(event)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5.0)
        stages.end()
