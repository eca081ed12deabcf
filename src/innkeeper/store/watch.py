"""Watching: hand every committed change to whoever asked, in order, without gap or duplicate.

The trick is kine's: subscribe first, then read the history up to the moment of subscribing, then go
on with what was queued since. Everything here runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from innkeeper.errors import StoreError
from innkeeper.store.kv import Event

# How far a watcher may fall behind. Ours: a reader that is this late will not catch up, and these
# bound what it can cost (all queues share the events themselves).
MAX_QUEUED_BATCHES: Final = 1024
MAX_QUEUED_BYTES: Final = 64 << 20

# read(prefix, first, last) -> (batches from `first` on, last revision they cover)
ReadHistory = Callable[[str, int, int], Awaitable[tuple[list[list[Event]], int]]]


class Subscription:
    """The Watch of one watcher. For one reader; a cancelled read loses nothing."""

    def __init__(self, prefix: str, first: int, published: int, read: ReadHistory) -> None:
        self._prefix = prefix
        self._first = first  # next revision to read from history, until it passes `published`
        self._published = published
        self._read = read
        self._replayed: deque[list[Event]] = deque()
        self._queue: deque[list[Event]] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._end: StoreError | None = None

    def push(self, revision: int, events: list[Event]) -> None:
        if revision < self._first or self._end is not None:
            return
        batch = [event for event in events if event.kv.key.startswith(self._prefix)]
        if not batch:
            return
        size = _size(batch)
        if len(self._queue) >= MAX_QUEUED_BATCHES or (
            self._queue and self._queued_bytes + size > MAX_QUEUED_BYTES
        ):
            self.end(
                StoreError(
                    f"the watcher of {self._prefix!r} fell {len(self._queue)} changes behind",
                    hint="list again and watch from there",
                )
            )
            return
        self._queue.append(batch)
        self._queued_bytes += size
        self._wake.set()

    def end(self, error: StoreError) -> None:
        """Make the next read, and every one after it, raise `error`; what was queued is dropped."""
        if self._end is None:
            self._end = error
            self._queue.clear()
            self._replayed.clear()
            self._wake.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> list[Event]:
        while True:
            if self._end is not None:
                # A new object each time, or its traceback would grow with every read.
                raise StoreError(self._end.message, hint=self._end.hint)
            if self._replayed:
                return self._replayed.popleft()
            if self._first <= self._published:
                batches, reached = await self._read(self._prefix, self._first, self._published)
                self._replayed.extend(batches)
                self._first = reached + 1
            elif self._queue:
                batch = self._queue.popleft()
                self._queued_bytes -= _size(batch)
                return batch
            else:
                self._wake.clear()
                await self._wake.wait()


class Hub:
    """All watchers of one store, and the last revision they were told of."""

    def __init__(self) -> None:
        self.revision = 0
        self._subscriptions: set[Subscription] = set()

    def publish(self, revision: int, events: list[Event]) -> None:
        """Tell the watchers of a commit; called once per revision, in order."""
        self.revision = revision
        for subscription in self._subscriptions:
            subscription.push(revision, events)

    def subscribe(self, prefix: str, from_revision: int, read: ReadHistory) -> Subscription:
        first = from_revision or self.revision + 1
        subscription = Subscription(prefix, first, self.revision, read)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        subscription.end(StoreError("this watch was left"))

    def close(self) -> None:
        for subscription in self._subscriptions:
            subscription.end(StoreError("the store is closed"))


def _size(batch: list[Event]) -> int:
    return sum(len(e.kv.value) + (len(e.previous.value) if e.previous else 0) for e in batch)
