"""All instances in memory, ready to be sent: what makes a list of 500 cheap.

Fed by one watch over the whole store, so that it sees every revision and can tell which it has
reached: a verb waits for its own revision before it answers, and the next list shows what it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from innkeeper.api.render import damaged, dumps, full, short
from innkeeper.errors import StoreCorrupt, StoreError
from innkeeper.paths import Paths
from innkeeper.spec.instance import InstanceRecord
from innkeeper.store import keys
from innkeeper.store.codec import decode
from innkeeper.store.kv import Event, EventKind, KeyValue, Store
from innkeeper.store.repo import not_found
from innkeeper.store.view import InstanceView, StatusRecord
from innkeeper.telemetry.log import fields

log: Final = logging.getLogger("innkeeper.api.index")

READY_DEADLINE_S: Final = 10.0
# The index follows within milliseconds. When it does not, answering late helps nobody.
CATCH_UP_DEADLINE_S: Final = 2.0
RETRY_S: Final = 0.25


class _Entry:
    """One instance: each value parsed once, each form rendered once per change."""

    __slots__ = ("_full", "_record", "_short", "_status", "record", "status")

    def __init__(self) -> None:
        self.record: KeyValue | None = None
        self.status: KeyValue | None = None
        self._record: InstanceRecord | None = None
        self._status: StatusRecord | None = None
        self._short: bytes | None = None
        self._full: bytes | None = None

    def put_record(self, kv: KeyValue | None) -> None:
        self.record, self._record, self._short, self._full = kv, None, None, None

    def put_status(self, kv: KeyValue | None) -> None:
        self.status, self._status, self._short, self._full = kv, None, None, None

    def view(self) -> InstanceView:
        assert self.record is not None
        if self._record is None:
            self._record = decode(InstanceRecord, self.record)
        if self.status is None:
            return InstanceView.of(self._record, self.record.mod_revision, None)
        if self._status is None:
            self._status = decode(StatusRecord, self.status)
        status = (self._status, self.status.mod_revision)
        return InstanceView.of(self._record, self.record.mod_revision, status)

    def short(self, name: str) -> bytes:
        if self._short is None:
            try:
                self._short = dumps(short(self.view()))
            except StoreCorrupt as error:
                self._short = dumps(damaged(name, error.message))
        return self._short

    def full(self, paths: Paths) -> bytes:
        if self._full is None:
            self._full = dumps(full(self.view(), paths))
        return self._full


class Index:
    """Follows the store while `run` runs; answers from memory."""

    def __init__(self, store: Store, paths: Paths) -> None:
        self._store = store
        self._paths = paths
        self._entries: dict[str, _Entry] = {}
        self._list: bytes | None = None
        self._moved = asyncio.Event()
        self._filled = asyncio.Event()
        self.revision = 0

    async def run(self) -> None:
        """Follow the store until cancelled; after a failure list again and go on from there."""
        while True:
            try:
                await self._follow()
            except StoreError as error:
                log.warning("lost the store's changes, starting over", extra=fields(error=error.message))
            await asyncio.sleep(RETRY_S)

    async def ready(self) -> None:
        """Wait for the first fill. Raises StoreError when it does not come."""
        if self._filled.is_set():
            return
        try:
            async with asyncio.timeout(READY_DEADLINE_S):
                await self._filled.wait()
        except TimeoutError:
            raise StoreError("The store cannot be read", hint="see the daemon's log") from None

    async def reached(self, revision: int) -> None:
        """Wait until everything up to `revision` is in; for a moment only."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_DEADLINE_S):
                while self.revision < revision:
                    await self._moved.wait()

    def listing(self) -> bytes:
        """The body of a list of all instances, sorted by name."""
        if self._list is None:
            shorts = b",".join(self._entries[name].short(name) for name in self._names())
            self._list = b'{"instances":[' + shorts + b'],"revision":' + str(self.revision).encode() + b"}"
        return self._list

    def one(self, name: str) -> bytes:
        """The body of one instance. Raises NotFound with close names, StoreCorrupt."""
        return self._present(name).full(self._paths)

    def view(self, name: str) -> InstanceView:
        """One instance. Raises as `one` does."""
        return self._present(name).view()

    def has(self, name: str) -> bool:
        entry = self._entries.get(name)
        return entry is not None and entry.record is not None

    def instances(self) -> list[InstanceView]:
        """All instances that can be read."""
        views = []
        for name in self._names():
            with contextlib.suppress(StoreCorrupt):
                views.append(self._entries[name].view())
        return views

    def _names(self) -> list[str]:
        return sorted(name for name, entry in self._entries.items() if entry.record is not None)

    def _present(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None or entry.record is None:
            raise not_found("instance", name, self._names(), "see what there is: inn list")
        return entry

    async def _follow(self) -> None:
        listing = await self._store.list("")
        async with self._store.watch("", from_revision=listing.revision + 1) as watch:
            self._entries.clear()
            for kv in listing.items:
                self._put(kv.key, kv)
            self._at(listing.revision)
            self._filled.set()
            await self._warm()
            async for batch in watch:
                for event in batch:
                    self._apply(event)
                self._at(batch[-1].kv.mod_revision)

    async def _warm(self) -> None:
        """Render everything once, with pauses for others, so that the first list is as fast as any."""
        for place, name in enumerate(self._names()):
            self._entries[name].short(name)
            if place % 50 == 49:
                await asyncio.sleep(0)

    def _apply(self, event: Event) -> None:
        self._put(event.kv.key, event.kv if event.kind is EventKind.PUT else None)

    def _put(self, key: str, kv: KeyValue | None) -> None:
        is_record = key.startswith(keys.INSTANCES)
        if not is_record and not key.startswith(keys.STATUS):
            return
        name = keys.name_of(key)
        entry = self._entries.setdefault(name, _Entry())
        if is_record:
            entry.put_record(kv)
        else:
            entry.put_status(kv)
        if entry.record is None and entry.status is None:
            del self._entries[name]

    def _at(self, revision: int) -> None:
        self.revision = revision
        self._list = None
        self._moved.set()
        self._moved = asyncio.Event()
