"""Spares: copies of a template that were spawned ahead and wait for a name.

One is claimed in the transaction that creates the instance with its uid, so that no two can have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from innkeeper.spec.base import Model
from innkeeper.store import keys
from innkeeper.store.codec import decode, encode
from innkeeper.store.kv import Compare, Delete, KeyValue, Op, Put, Store, unchanged


class SpareRecord(Model):
    """`ready`: its QEMU waits for the state. Written before anything is made, so that nothing of one that
    was cut stays unknown."""

    uid: str
    template_uid: str
    token: str
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """A spare as it was read; `compare` and `taken` go into the transaction that takes it."""

    uid: str
    kv: KeyValue

    @property
    def compare(self) -> Compare:
        return unchanged(self.kv)

    @property
    def taken(self) -> Op:
        return Delete(self.kv.key)


class Spares:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, record: SpareRecord) -> None:
        """Synced until it is ready: after a power cut its files must be known."""
        await self._store.txn([], [Put(keys.spare(record.uid), encode(record))], durable=not record.ready)

    async def all(self) -> list[SpareRecord]:
        return [decode(SpareRecord, kv) for kv in (await self._store.list(keys.SPARES)).items]

    async def ready_of(self, token: str, count: int) -> Sequence[Claim]:
        """At most `count` that wait at this moment."""
        found = [(decode(SpareRecord, kv), kv) for kv in (await self._store.list(keys.SPARES)).items]
        return [Claim(one.uid, kv) for one, kv in found if one.ready and one.token == token][:count]

    async def forget(self, uid: str) -> bool:
        """False: somebody claimed it meanwhile; it is an instance's now."""
        kv = await self._store.get(keys.spare(uid))
        if kv is None:
            return False
        return (await self._store.txn([unchanged(kv)], [Delete(kv.key)], durable=False)).succeeded
