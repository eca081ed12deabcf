"""Workers that the store refused, on a full disk: room comes back without telling, so they try again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from innkeeper.errors import StoreError

log = logging.getLogger("innkeeper.agent")

STORE_RETRY_S: Final = 1.0


class Retries:
    """`again(name)` is called a second after each failure; the first of a row is logged."""

    def __init__(self, again: Callable[[str], None]) -> None:
        self._again = again
        self._failing: set[str] = set()
        self._due: dict[str, asyncio.TimerHandle] = {}

    def failed(self, name: str, error: StoreError) -> None:
        if name not in self._failing:
            log.warning("working on %s: %s; trying again and again", name, error)
            self._failing.add(name)
        if name not in self._due:
            loop = asyncio.get_running_loop()
            self._due[name] = loop.call_later(STORE_RETRY_S, self._now, name)

    def worked(self, name: str) -> None:
        self._failing.discard(name)

    def close(self) -> None:
        for timer in self._due.values():
            timer.cancel()

    def _now(self, name: str) -> None:
        del self._due[name]
        self._again(name)
