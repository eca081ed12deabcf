"""Which leases there are, when they run out, which keys hang on them; and the timer that ends them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from innkeeper.clock import Clock
from innkeeper.errors import InnkeeperError, NotFound
from innkeeper.store.kv import NO_LEASE, Event, EventKind

# How long to wait after an expiry that could not be written (disk full). Ours: long enough to cost
# nothing, short enough that whoever frees space sees the keys go.
RETRY_S: Final = 1.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    deadline: float  # of Clock.monotonic()
    keys: set[str] = field(default_factory=set)


class Leases:
    """The bookkeeping; touched by one thread only, and only after the change is written down.

    A lease past its deadline counts as gone at once: no keepalive brings it back and no put can use
    it, even when its keys are not deleted yet.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._leases: dict[int, _Lease] = {}

    def add(self, lease: int, ttl_s: float, remaining_s: float) -> float:
        """Note a lease; returns its deadline (of `Clock.monotonic`)."""
        deadline = self._clock.monotonic() + remaining_s
        self._leases[lease] = _Lease(ttl_s, deadline)
        return deadline

    def alive(self, lease: int) -> float:
        """The ttl in seconds of a lease that has not run out; raises NotFound otherwise."""
        found = self._leases.get(lease)
        if found is None or found.deadline <= self._clock.monotonic():
            raise NotFound(f"lease {lease} does not exist or has run out")
        return found.ttl_s

    def renew(self, lease: int) -> None:
        found = self._leases[lease]
        found.deadline = self._clock.monotonic() + found.ttl_s

    def remove(self, lease: int) -> None:
        del self._leases[lease]

    def keys(self, lease: int) -> list[str]:
        """The keys that hang on a lease, sorted; raises NotFound when there is no such lease."""
        if lease not in self._leases:
            raise NotFound(f"lease {lease} does not exist or has run out")
        return sorted(self._leases[lease].keys)

    def attach(self, key: str, lease: int) -> None:
        self._leases[lease].keys.add(key)

    def apply(self, events: Iterable[Event]) -> None:
        """Follow a committed change: a key hangs on the lease of its last put only."""
        for event in events:
            if event.previous and event.previous.lease in self._leases:
                self._leases[event.previous.lease].keys.discard(event.kv.key)
            if event.kind is EventKind.PUT and event.kv.lease != NO_LEASE:
                self._leases[event.kv.lease].keys.add(event.kv.key)

    def due(self) -> list[int]:
        """Leases that have run out, the earliest first."""
        now = self._clock.monotonic()
        over = [(lease.deadline, number) for number, lease in self._leases.items() if lease.deadline <= now]
        return [number for _, number in sorted(over)]

    def next_deadline(self) -> float | None:
        return min((lease.deadline for lease in self._leases.values()), default=None)


class ExpiryTimer:
    """Calls `step` when the earliest deadline it was told of is reached; `step` returns the next one.

    A keepalive only moves a deadline away, so it need not touch the timer: the timer then wakes
    early, finds nothing due and learns the new deadline.
    """

    def __init__(self, clock: Clock, step: Callable[[], Awaitable[float | None]]) -> None:
        self._clock = clock
        self._step = step
        self._next = math.inf
        self._sleeping: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._failing = False

    def arm(self, deadline: float) -> None:
        """Be there at `deadline` (of `Clock.monotonic`) at the latest."""
        if self._closed or deadline >= self._next:
            return
        self._next = deadline
        if self._sleeping is not None:
            self._sleeping.cancel()
        self._sleeping = asyncio.get_running_loop().create_task(self._wait(deadline))
        self._tasks.add(self._sleeping)
        self._sleeping.add_done_callback(self._tasks.discard)

    async def _wait(self, deadline: float) -> None:
        await self._clock.sleep(max(0.0, deadline - self._clock.monotonic()))
        # From here on an `arm` starts a second task instead of cancelling this one half-way.
        self._sleeping, self._next = None, math.inf
        try:
            following = await self._step()
            self._failing = False
        except InnkeeperError as error:
            if not self._failing:  # say it once, not every second until the disk has room
                _log.warning("cannot end expired leases, trying every %g s: %s", RETRY_S, error)
            self._failing = True
            following = self._clock.monotonic() + RETRY_S
        if following is not None:
            self.arm(following)

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
