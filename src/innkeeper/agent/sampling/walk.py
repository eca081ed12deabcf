"""Where the memory of VMs lies: page tables are walked for it, one VM after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from innkeeper.agent.sampling.files import aside
from innkeeper.agent.sampling.tracker import Tracker
from innkeeper.clock import Clock

INTERVAL_S: Final = 60.0
INTERVAL_WATCHED_S: Final = 10.0
DEADLINE_S: Final = 10.0
SHARE: Final = 0.005  # of a core, for all VMs together
SHARE_WATCHED: Final = 0.05


class Walker:
    """`numa`: the host has several nodes, and it matters on which the memory is."""

    def __init__(self, clock: Clock, trackers: Mapping[str, Tracker], numa: bool) -> None:
        self._clock, self._trackers, self._numa = clock, trackers, numa

    async def run(self, watched: Callable[[], bool]) -> None:
        """For ever, and so seldom that all of it stays a small share of a core."""
        while True:
            begun = self._clock.monotonic()
            tracker = self._next(begun - (INTERVAL_WATCHED_S if watched() else INTERVAL_S))
            if tracker is None:
                await self._clock.sleep(1.0)
                continue
            await self._walk(tracker)
            took = self._clock.monotonic() - begun
            await self._clock.sleep(took / (SHARE_WATCHED if watched() else SHARE))

    def _next(self, before: float) -> Tracker | None:
        """Whose page tables were walked longest ago, if that was before `before`."""
        found = [one for one in self._trackers.values() if one.sample is not None]
        oldest = min(found, key=lambda one: one.walked_at or 0.0, default=None)
        if oldest is None or (oldest.walked_at is not None and oldest.walked_at > before):
            return None
        return oldest

    async def _walk(self, tracker: Tracker) -> None:
        reader = tracker.reader
        tracker.walked_at = self._clock.monotonic()  # whatever comes of it: it is the next one's turn
        if reader is None:
            return
        try:
            footprint = await aside(reader.footprint, DEADLINE_S)
            placement = await aside(reader.placement, DEADLINE_S) if self._numa else None
        except (TimeoutError, OSError, ValueError):
            return  # it has ended, or the kernel holds its memory map: later again
        if tracker.reader is reader:  # still the same process
            tracker.footprint, tracker.placement = footprint, placement
            tracker.walked_at = self._clock.monotonic()
