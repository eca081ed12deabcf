"""Trials of advice: durable, so that each is judged, and taken back if need be, whatever is killed."""

from __future__ import annotations

import contextlib

from innkeeper.errors import StoreCorrupt
from innkeeper.spec.advice import TrialsRecord
from innkeeper.store import keys
from innkeeper.store.codec import decode, encode
from innkeeper.store.kv import Put, Store, exists


class Trials:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def of(self, name: str, uid: str) -> TrialsRecord:
        """Of the instance with that uid; empty where it had none, or they are damaged."""
        kv = await self._store.get(keys.trials(name))
        found = None
        if kv is not None:
            with contextlib.suppress(StoreCorrupt):
                found = decode(TrialsRecord, kv)
        return found if found and found.uid == uid else TrialsRecord(name=name, uid=uid)

    async def all(self) -> list[TrialsRecord]:
        """One that is damaged is left out: it hides no other."""
        found = []
        for kv in (await self._store.list(keys.TRIALS)).items:
            with contextlib.suppress(StoreCorrupt):
                found.append(decode(TrialsRecord, kv))
        return found

    async def put(self, record: TrialsRecord) -> bool:
        """Synced. False, and nothing written, when the instance is gone."""
        result = await self._store.txn(
            [exists(keys.instance(record.name))], [Put(keys.trials(record.name), encode(record))]
        )
        return result.succeeded
