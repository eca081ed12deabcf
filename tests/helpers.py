"""What tests of every kind use."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from innkeeper.store.kv import Event, Watch

T = TypeVar("T")


def run(coro: Coroutine[Any, Any, T]) -> T:
    """Run one coroutine in an event loop of its own, as a test function that is not async."""
    return asyncio.run(coro)


class FakeClock:
    """A `Clock` that stands still until `advance`; sleepers wake when their time has come."""

    def __init__(self, *, monotonic: float = 1000.0, time: float = 1.7e9) -> None:
        self._monotonic = monotonic
        self._time = time
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self._monotonic

    def time(self) -> float:
        return self._time

    async def sleep(self, seconds: float) -> None:
        until = self._monotonic + seconds
        if until <= self._monotonic:
            await asyncio.sleep(0)
            return
        entry = (until, asyncio.get_running_loop().create_future())
        self._sleepers.append(entry)
        try:
            await entry[1]
        finally:
            self._sleepers.remove(entry)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; whoever slept that long runs at the next turn of the event loop."""
        self._monotonic += seconds
        self._time += seconds
        for until, sleeper in list(self._sleepers):
            if until <= self._monotonic and not sleeper.done():
                sleeper.set_result(None)

    @property
    def sleeping(self) -> list[float]:
        """When (of `monotonic`) each sleeper wants to wake, the earliest first."""
        return sorted(until for until, _ in self._sleepers)


async def take(watch: Watch, count: int) -> list[list[Event]]:
    """The next `count` batches of a store's watch."""
    batches: list[list[Event]] = []
    while len(batches) < count:
        batches.append(await anext(aiter(watch)))
    return batches
