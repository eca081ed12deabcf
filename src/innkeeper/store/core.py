"""What all our own back-ends share: the semantics on top of a log, and the asynchronous face.

A back-end is a `Log` (where rows live; synchronous, one thread) and a `LogStore` that says in which
thread the jobs on it run: memory on the event loop's, SQLite on a thread of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol, TypeVar

from innkeeper.clock import Clock
from innkeeper.errors import BadRequest, Compacted, StoreError
from innkeeper.store import semantics
from innkeeper.store.kv import NO_LEASE, Compare, Event, KeyValue, Listing, Op, Put, TxnResult, Watch
from innkeeper.store.lease import ExpiryTimer, Leases
from innkeeper.store.watch import Hub

T = TypeVar("T")
History = tuple[list[list[Event]], int]  # batches, and the last revision they cover


class Log(Protocol):
    """The rows. Each writing call happens wholly or not at all, and raises when it did not."""

    @property
    def revision(self) -> int: ...

    @property
    def floor(self) -> int:
        """Everything from this revision on can be read; 0 before the first compaction."""

    def get(self, key: str) -> KeyValue | None: ...

    def scan(self, prefix: str) -> list[KeyValue]:
        """All live keys under `prefix`, in key order."""

    def scan_at(self, prefix: str, revision: int) -> list[KeyValue]:
        """As `scan`, as of `revision`, which is not below the floor."""

    def history(self, prefix: str, first: int, last: int) -> History:
        """Changes from revision `first` (not below the floor) on, a batch per revision.

        May stop before `last` to stay small; the number returned is the last revision covered.
        """

    def append(self, events: Sequence[Event], *, durable: bool, ended_lease: int = NO_LEASE) -> None:
        """Write the events of the next revision, and forget a lease with them."""

    def leases(self) -> list[tuple[int, float, float]]:
        """Every lease: (id, ttl in s, seconds left of it)."""

    def leased(self) -> list[tuple[str, int]]:
        """The live keys that hang on a lease, and which."""

    def add_lease(self, ttl_s: float) -> int: ...

    def renew_lease(self, lease: int, ttl_s: float) -> None: ...

    def raise_floor(self, revision: int) -> None: ...

    def forget(self, after: int) -> int | None:
        """Drop a few superseded rows below the floor; None when done, else what to pass next (first 0)."""

    def shrink(self) -> bool:
        """Give some unused space back; False when there is nothing left to do."""

    def close(self) -> None: ...


class Core:
    """The semantics of the store, synchronous, in one thread. `publish` is called after each commit."""

    def __init__(self, log: Log, clock: Clock, publish: Callable[[int, list[Event]], None]) -> None:
        self.log = log
        self._publish = publish
        self._leases = Leases(clock)
        for lease, ttl_s, remaining_s in log.leases():
            self._leases.add(lease, ttl_s, remaining_s)
        for key, lease in log.leased():
            self._leases.attach(key, lease)

    def listing(self, prefix: str, revision: int) -> Listing:
        current = self.log.revision
        if revision > current:
            raise BadRequest(f"revision {revision} is in the future; the store is at {current}")
        if revision in (0, current):
            return Listing(self.log.scan(prefix), current)
        self._check_floor(revision)
        return Listing(self.log.scan_at(prefix, revision), revision)

    def history(self, prefix: str, first: int, last: int) -> History:
        self._check_floor(first)
        return self.log.history(prefix, first, last)

    def txn(self, compares: Sequence[Compare], then: Sequence[Op], durable: bool) -> TxnResult:
        found = {compare.key: self.log.get(compare.key) for compare in compares}
        if not all(semantics.holds(compare, found[compare.key]) for compare in compares):
            present = {key: kv for key, kv in found.items() if kv is not None}
            return TxnResult(False, self.log.revision, present)
        for lease in {op.lease for op in then if isinstance(op, Put)} - {NO_LEASE}:
            self._leases.alive(lease)
        events = semantics.build_events(then, self.log.revision + 1, found, self.log.get, self.log.scan)
        self._commit(events, durable=durable)
        return TxnResult(True, self.log.revision)

    def grant(self, ttl_s: float) -> tuple[int, float]:
        """The new lease and its deadline."""
        lease = self.log.add_lease(ttl_s)
        return lease, self._leases.add(lease, ttl_s, ttl_s)

    def keepalive(self, lease: int) -> float:
        ttl_s = self._leases.alive(lease)
        self.log.renew_lease(lease, ttl_s)
        self._leases.renew(lease)
        return ttl_s

    def revoke(self, lease: int) -> None:
        revision = self.log.revision + 1
        previous = (self.log.get(key) for key in self._leases.keys(lease))
        events = [semantics.delete_event(kv, revision) for kv in previous if kv is not None]
        self._commit(events, durable=True, ended_lease=lease)

    def expire(self) -> int:
        due = self._leases.due()
        for lease in due:
            self.revoke(lease)
        return len(due)

    def next_deadline(self) -> float | None:
        return self._leases.next_deadline()

    def raise_floor(self, revision: int) -> bool:
        """Whether there is now history to forget."""
        if revision > self.log.revision:
            raise BadRequest(f"revision {revision} is in the future; the store is at {self.log.revision}")
        if revision <= self.log.floor:
            return False
        self.log.raise_floor(revision)
        return True

    def _check_floor(self, revision: int) -> None:
        if revision < self.log.floor:
            raise Compacted(f"revision {revision} is gone; the oldest kept is {self.log.floor}")

    def _commit(self, events: list[Event], *, durable: bool, ended_lease: int = NO_LEASE) -> None:
        if not events and ended_lease == NO_LEASE:
            return
        self.log.append(events, durable=durable, ended_lease=ended_lease)
        self._leases.apply(events)
        if ended_lease != NO_LEASE:
            self._leases.remove(ended_lease)
        if events:
            self._publish(self.log.revision, events)


class LogStore(ABC):
    """The `Store` interface over a Core. Bound to the event loop it is first used on.

    A cancelled call may or may not have happened, as with any server.
    """

    def __init__(self, clock: Clock) -> None:
        self._hub = Hub()
        self._timer = ExpiryTimer(clock, self._expire)
        self._closed = False

    @abstractmethod
    async def _call(self, job: Callable[[Core], T]) -> T:
        """Run `job` in the core's thread, after all jobs before it."""

    @abstractmethod
    async def _close(self) -> None: ...

    async def get(self, key: str) -> KeyValue | None:
        semantics.check_key(key)
        return await self._call(lambda core: core.log.get(key))

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        semantics.check_prefix(prefix)
        semantics.check_revision(revision)
        return await self._call(lambda core: core.listing(prefix, revision))

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], *, durable: bool = True
    ) -> TxnResult:
        compares, then = tuple(compares), tuple(then)  # the caller's lists may change meanwhile
        semantics.check_txn(compares, then)
        return await self._call(lambda core: core.txn(compares, then, durable))

    @asynccontextmanager
    async def watch(self, prefix: str, *, from_revision: int = 0) -> AsyncIterator[Watch]:
        semantics.check_prefix(prefix)
        semantics.check_revision(from_revision)
        self._require_open()
        subscription = self._hub.subscribe(prefix, from_revision, self._history)
        try:
            yield subscription
        finally:
            self._hub.unsubscribe(subscription)

    async def _history(self, prefix: str, first: int, last: int) -> History:
        return await self._call(lambda core: core.history(prefix, first, last))

    async def lease_grant(self, ttl_s: float) -> int:
        semantics.check_ttl(ttl_s)
        lease, deadline = await self._call(lambda core: core.grant(ttl_s))
        self._timer.arm(deadline)
        return lease

    async def lease_keepalive(self, lease: int) -> float:
        return await self._call(lambda core: core.keepalive(lease))

    async def lease_revoke(self, lease: int) -> None:
        await self._call(lambda core: core.revoke(lease))

    async def expire_leases(self) -> int:
        """End every lease that has run out, each as one revision; returns how many.

        The store's own timer calls this; tests with a fake clock may. After StoreFull the leases
        not ended yet stay due.
        """
        return await self._call(Core.expire)

    async def _expire(self) -> float | None:
        await self.expire_leases()
        return await self._call(Core.next_deadline)

    async def compact(self, revision: int) -> None:
        semantics.check_revision(revision)
        if not await self._call(lambda core: core.raise_floor(revision)):
            return
        # In small steps, so that other calls get their turn in between.
        after: int | None = 0
        while after is not None:
            after = await self._call(partial(_forget, after=after))
        while await self._call(lambda core: core.log.shrink()):
            pass

    async def revision(self) -> int:
        return await self._call(lambda core: core.log.revision)

    async def close(self) -> None:
        """End all watches, wait for what was already asked, let go of the file. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._hub.close()
        await self._timer.close()
        await self._close()

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")


def _forget(core: Core, after: int) -> int | None:
    return core.log.forget(after)
