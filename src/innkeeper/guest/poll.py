"""How often to ask an agent that can only be asked: soon after something happened, then more rarely."""

from __future__ import annotations

import asyncio
from typing import Final

# A question takes a tiny TCG guest 0.4 ms: asked more often, it would slow the command down.
FIRST_S: Final = 0.004
# The latency of output after a pause, and after half a minute of silence: a Debian guest under TCG spent a
# sixth of a CPU on being asked 20 times a second.
SLOWEST_S: Final = 0.05
SILENT_S: Final = 0.25
# Slowly: most short commands end within ten polls (60 ms), and each should be told soon after its end.
_GROWTH: Final = 1.1
_SILENT_GROWTH: Final = 1.006


class Pace:
    """Sleeps between polls: FIRST_S after `reset`, growing up to SLOWEST_S, and slowly on to SILENT_S."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def reset(self) -> None:
        self._next_s = FIRST_S

    async def pause(self) -> None:
        await asyncio.sleep(self._next_s)
        if self._next_s < SLOWEST_S:
            self._next_s = min(self._next_s * _GROWTH, SLOWEST_S)
        else:
            self._next_s = min(self._next_s * _SILENT_GROWTH, SILENT_S)
