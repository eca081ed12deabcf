"""Loops that are to run as long as the daemon does."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from innkeeper.clock import Clock

log = logging.getLogger("innkeeper.lasting")

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0


async def lasting(name: str, run: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """`run` until cancelled. What it does not handle itself is a bug: told in the log at once, and it begins
    again, later each time in a row. Else one bad moment would take balloons, weights or counters from every
    VM until somebody restarts the daemon, and nothing would say so."""
    pause_s = FIRST_PAUSE_S
    while True:
        begun = clock.monotonic()
        try:
            await run()
            return
        except Exception:
            if clock.monotonic() - begun > LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            log.exception("%s failed, and begins again in %g s", name, pause_s)
        await clock.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
