"""Records of snapshots in the store, and waiting for the agent to answer for one."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from innkeeper.errors import Conflict, GuestTimeout, NameTaken, NotFound, StoreError, from_dict
from innkeeper.spec.instance import InstanceRecord
from innkeeper.spec.snapshot import SnapshotRecord, SnapshotState
from innkeeper.store import keys
from innkeeper.store.codec import decode, encode
from innkeeper.store.kv import (
    Compare,
    Delete,
    EventKind,
    KeyValue,
    Op,
    Put,
    Store,
    Watch,
    absent,
    exists,
    unchanged,
)

CHANGE_ATTEMPTS: Final = 32
CLEAN_UP_DEADLINE_S: Final = 10.0
Change = Callable[[SnapshotRecord], SnapshotRecord | None]


class Snapshots:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def of(self, instance: str) -> list[SnapshotRecord]:
        """All of one instance, the oldest first."""
        listing = await self._store.list(keys.snapshots_of(instance))
        return sorted((decode(SnapshotRecord, kv) for kv in listing.items), key=lambda one: one.created_at)

    async def get(self, instance: str, name: str) -> SnapshotRecord:
        """One that is there, or is being taken. Raises NotFound with close names."""
        kv = await self._store.get(keys.snapshot(instance, name))
        found = decode(SnapshotRecord, kv) if kv else None
        if found is None or found.state is SnapshotState.REMOVING:
            raise await self._no_such(instance, name)
        return found

    async def by_id(self, instance: str, ident: str) -> SnapshotRecord | None:
        return next((one for one in await self.of(instance) if one.id == ident), None)

    async def create(self, record: SnapshotRecord) -> int:
        """Ask for one. Raises NameTaken, or NotFound when the instance went away."""
        key, owner = keys.snapshot(record.instance, record.name), keys.instance(record.instance)
        result = await self._store.txn([absent(key), exists(owner)], [Put(key, encode(record))])
        if result.succeeded:
            return result.revision
        if key in result.current:
            raise NameTaken(
                f"{record.instance} has a snapshot named {record.name} already",
                hint=f"choose another name, or remove it: inn snapshot rm {record.instance} {record.name}",
            )
        raise NotFound(f"{record.instance} was removed meanwhile", hint="see what there is: inn list")

    async def change(
        self,
        record: SnapshotRecord,
        change: Change,
        *,
        durable: bool = True,
        instance: Callable[[InstanceRecord], InstanceRecord] | None = None,
    ) -> SnapshotRecord | None:
        """Change the record with the id of `record`; None when it is gone. `change` may be called several
        times; None leaves it as it is. With `instance` its instance is changed in the same revision."""
        for attempt in range(CHANGE_ATTEMPTS):
            kv = await self._store.get(keys.snapshot(record.instance, record.name))
            now = decode(SnapshotRecord, kv) if kv else None
            if kv is None or now is None or now.id != record.id:
                return None
            wanted = change(now)
            if wanted is None or wanted == now:
                return now
            compares, writes = [unchanged(kv)], [Put(kv.key, encode(wanted))]
            if instance is not None:
                owner = await self._store.get(keys.instance(record.instance))
                if owner is None:
                    return None
                compares.append(unchanged(owner))
                writes.append(Put(owner.key, encode(instance(decode(InstanceRecord, owner))), owner.lease))
            result = await self._store.txn(compares, writes, durable=durable)
            if result.succeeded:
                return wanted
            await asyncio.sleep(0.001 * attempt)
        raise Conflict(f"Snapshot {record.name} is being changed by others all the time", hint="try again")

    async def forget(self, record: SnapshotRecord) -> None:
        """Delete its record; its children get its parent in the same revision."""
        while True:
            listing = await self._store.list(keys.snapshots_of(record.instance))
            own: KeyValue | None = None
            compares: list[Compare] = []
            writes: list[Op] = []
            for kv in listing.items:
                one = decode(SnapshotRecord, kv)
                if one.id == record.id:
                    own = kv
                elif one.parent == record.name:
                    compares.append(unchanged(kv))
                    writes.append(Put(kv.key, encode(one.model_copy(update={"parent": record.parent}))))
            if own is None:
                return
            result = await self._store.txn([unchanged(own), *compares], [Delete(own.key), *writes])
            if result.succeeded:
                return

    async def settle(self, record: SnapshotRecord, deadline_s: float) -> tuple[SnapshotRecord, int]:
        """Wait until it is ready; raises why it could not be taken, GuestTimeout at the deadline."""
        found, revision = await self._until(record, SnapshotState.READY, deadline_s)
        if found is None:
            raise NotFound(
                f"Snapshot {record.name} of {record.instance} was removed meanwhile",
                hint=f"see inn snapshot list {record.instance}",
            )
        if found.failure is not None:
            with contextlib.suppress(GuestTimeout):
                await self.settle_gone(record, CLEAN_UP_DEADLINE_S)  # the agent clears up after it
            raise from_dict(found.failure)
        return found, revision

    async def settle_gone(self, record: SnapshotRecord, deadline_s: float) -> int:
        """Wait until it is gone; the revision of its end."""
        _, revision = await self._until(record, None, deadline_s)
        return revision

    async def _until(
        self, record: SnapshotRecord, state: SnapshotState | None, deadline_s: float
    ) -> tuple[SnapshotRecord | None, int]:
        """Until it is in that state, has failed, or is gone (None)."""
        key = keys.snapshot(record.instance, record.name)
        try:
            async with asyncio.timeout(deadline_s), self._store.watch(key) as watch:
                kv = await self._store.get(key)
                revision = kv.mod_revision if kv else await self._store.revision()
                while True:
                    now = decode(SnapshotRecord, kv) if kv and kv.value else None
                    if now is None or now.id != record.id:
                        return None, revision
                    if state is not None and (now.state is state or now.failure is not None):
                        return now, revision
                    kv = await _next(watch, key)
                    revision = kv.mod_revision
        except TimeoutError:
            raise GuestTimeout(
                f"Snapshot {record.name} of {record.instance} is not done within {deadline_s:g} s",
                hint=f"see inn snapshot list {record.instance}, or give it longer (--timeout)",
            ) from None

    async def _no_such(self, instance: str, name: str) -> NotFound:
        known = [one.name for one in await self.of(instance)]
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}?" if close else f"see inn snapshot list {instance}"
        return NotFound(f"{instance} has no snapshot named {name}", hint=hint, details={"close": close})


async def _next(watch: Watch, key: str) -> KeyValue:
    """The next change of exactly this key; without a value when it was deleted."""
    async for batch in watch:
        for event in batch:
            if event.kv.key == key:
                gone = event.kind is EventKind.DELETE
                return replace(event.kv, value=b"") if gone else event.kv
    raise StoreError("The store was closed")
