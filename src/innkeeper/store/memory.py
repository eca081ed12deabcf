"""The store in memory: for tests, and the reference the other back-ends are compared with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from innkeeper.clock import Clock, SystemClock
from innkeeper.store.core import Core, LogStore
from innkeeper.store.kv import NO_LEASE, Event, EventKind, KeyValue

T = TypeVar("T")

_SYSTEM_CLOCK: Final = SystemClock()


class MemoryLog:
    """Current values, and the events of every revision from the floor on."""

    def __init__(self) -> None:
        self.revision = 0
        self.floor = 0
        self._live: dict[str, KeyValue] = {}
        self._batches: list[list[Event]] = []  # of the revisions up to `self.revision`, in order
        self._last_lease = NO_LEASE

    def get(self, key: str) -> KeyValue | None:
        return self._live.get(key)

    def scan(self, prefix: str) -> list[KeyValue]:
        return [self._live[key] for key in sorted(self._live) if key.startswith(prefix)]

    def scan_at(self, prefix: str, revision: int) -> list[KeyValue]:
        # From now backwards, undoing each event: what SQLite does by looking rows up, done otherwise.
        then = {key: kv for key, kv in self._live.items() if key.startswith(prefix)}
        for batch in reversed(self._batches[self._index(revision + 1) :]):
            for event in batch:
                if event.previous is not None and event.kv.key.startswith(prefix):
                    then[event.kv.key] = event.previous
                else:
                    then.pop(event.kv.key, None)
        return [then[key] for key in sorted(then)]

    def history(self, prefix: str, first: int, last: int) -> tuple[list[list[Event]], int]:
        batches = self._batches[self._index(first) : self._index(last + 1)]
        matching = ([e for e in batch if e.kv.key.startswith(prefix)] for batch in batches)
        return [batch for batch in matching if batch], last

    def append(self, events: Sequence[Event], *, durable: bool, ended_lease: int = NO_LEASE) -> None:
        if not events:
            return
        for event in events:
            if event.kind is EventKind.PUT:
                self._live[event.kv.key] = event.kv
            else:
                del self._live[event.kv.key]
        self._batches.append(list(events))
        self.revision += 1

    def leases(self) -> list[tuple[int, float, float]]:
        return []

    def leased(self) -> list[tuple[str, int]]:
        return [(kv.key, kv.lease) for kv in self._live.values() if kv.lease != NO_LEASE]

    def add_lease(self, ttl_s: float) -> int:
        self._last_lease += 1
        return self._last_lease

    def renew_lease(self, lease: int, ttl_s: float) -> None:
        pass

    def raise_floor(self, revision: int) -> None:
        del self._batches[: self._index(revision)]
        self.floor = revision

    def forget(self, after: int) -> int | None:
        return None

    def shrink(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def _index(self, revision: int) -> int:
        oldest = self.revision - len(self._batches) + 1
        return max(0, revision - oldest)


class MemoryStore(LogStore):
    """A `Store` that is gone when the process is; `durable` means nothing to it."""

    def __init__(self, clock: Clock = _SYSTEM_CLOCK) -> None:
        super().__init__(clock)
        self._core = Core(MemoryLog(), clock, self._hub.publish)

    async def _call(self, job: Callable[[Core], T]) -> T:
        self._require_open()
        # A call that never lets others run would hide races that the other back-ends have.
        await asyncio.sleep(0)
        return job(self._core)

    async def _close(self) -> None:
        pass
