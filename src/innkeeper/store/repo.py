"""Typed access to the store: records in and out, every change by compare-and-swap.

Values become models and back in `codec.py`. Waiting for the agent is in `settle.py`.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from innkeeper.errors import Conflict, NameTaken, NotFound
from innkeeper.spec.base import Model
from innkeeper.spec.host import HostRecord
from innkeeper.spec.image import ImageRecord
from innkeeper.spec.instance import InstanceRecord, InstanceStatus
from innkeeper.store import keys, settle
from innkeeper.store.codec import decode, encode
from innkeeper.store.kv import (
    NO_LEASE,
    Compare,
    Delete,
    KeyValue,
    Op,
    Put,
    Store,
    absent,
    exists,
    unchanged,
)
from innkeeper.store.settle import Limit, Predicate
from innkeeper.store.snapshots import Snapshots
from innkeeper.store.spares import Claim, Spares
from innkeeper.store.trials import Trials
from innkeeper.store.view import InstanceView, StatusRecord

__all__ = ["InstanceView", "Repo", "StatusRecord", "Stored", "decode", "encode"]

# Each lost race means that somebody else made progress, so this bounds nothing but a livelock bug.
CHANGE_ATTEMPTS: Final = 32

M = TypeVar("M", bound=Model)
ChangeInstance = Callable[[InstanceRecord, InstanceStatus], InstanceRecord | None]


@dataclass(frozen=True, slots=True)
class Stored(Generic[M]):
    """A record with the key-value it was read from, for a later compare."""

    value: M
    kv: KeyValue


def not_found(what: str, name: str, known: Iterable[str], hint: str = "") -> NotFound:
    """NotFound whose hint names what the user may have meant."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    guess = f"did you mean {' or '.join(close)}?" if close else ""
    return NotFound(f"No {what} named {name}", hint=guess or hint, details={"name": name, "close": close})


class Repo:
    """Records of instances, images and hosts in one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.snapshots = Snapshots(store)
        self.spares = Spares(store)
        self.trials = Trials(store)

    # -- instances ---------------------------------------------------------------------------------

    async def find_instance(self, name: str) -> Stored[InstanceRecord] | None:
        kv = await self.store.get(keys.instance(name))
        return Stored(decode(InstanceRecord, kv), kv) if kv else None

    async def instance(self, name: str) -> Stored[InstanceRecord]:
        """One instance, or NotFound with names that are close."""
        return await self.find_instance(name) or await self._no_instance(name)

    async def view(self, name: str) -> InstanceView:
        """One instance with what was observed of it, or NotFound."""
        stored = await self.instance(name)
        return InstanceView.of(stored.value, stored.kv.mod_revision, await self.status(name))

    async def instances(self) -> list[InstanceView]:
        """All instances with their status, sorted by name."""
        records = await self.store.list(keys.INSTANCES)
        statuses = await self.store.list(keys.STATUS)
        by_name = {keys.name_of(kv.key): Stored(decode(StatusRecord, kv), kv) for kv in statuses.items}
        return [
            InstanceView.of(
                decode(InstanceRecord, kv), kv.mod_revision, _pair(by_name.get(keys.name_of(kv.key)))
            )
            for kv in records.items
        ]

    async def create_instance(
        self, record: InstanceRecord, *, provided: Sequence[Compare] = ()
    ) -> InstanceView:
        """Put a new record. Raises NameTaken, or Conflict when a compare in `provided` fails."""
        key = keys.instance(record.name)
        result = await self.store.txn([absent(key), *provided], [Put(key, encode(record))])
        if not result.succeeded:
            if key in result.current:
                raise NameTaken(
                    f"There is an instance named {record.name} already",
                    hint=f"choose another name, or remove it: inn rm {record.name}",
                    details={"name": record.name},
                )
            raise Conflict(
                f"What {record.name} is made from was changed at the same time", hint="try once more"
            )
        return InstanceView.of(record, result.revision, None)

    async def create_instances(
        self, records: Sequence[InstanceRecord], *, claims: Sequence[Claim] = ()
    ) -> list[InstanceView]:
        """Put several new records in one transaction, which takes the spares that some of them are to be.
        Raises NameTaken for the first name that is, Conflict when a spare is gone."""
        names = [keys.instance(record.name) for record in records]
        puts: list[Op] = [Put(key, encode(record)) for key, record in zip(names, records, strict=True)]
        result = await self.store.txn(
            [*(absent(key) for key in names), *(claim.compare for claim in claims)],
            [*puts, *(claim.taken for claim in claims)],
        )
        if not result.succeeded:
            taken = next((key for key in names if key in result.current), None)
            if taken is None:
                raise Conflict("A spare was claimed by somebody else", hint="try once more")
            raise NameTaken(
                f"There is an instance named {keys.name_of(taken)} already",
                hint="choose other names, or remove it",
                details={"name": keys.name_of(taken)},
            )
        return [InstanceView.of(record, result.revision, None) for record in records]

    async def change_instance(self, name: str, change: ChangeInstance) -> InstanceView:
        """Read, change and write one record, again whenever somebody else was faster.

        `change(record, status)` returns the new record, or None to leave it as it is; it may be
        called several times and raises to refuse. Raises NotFound, or Conflict in the end.
        """
        for attempt in range(CHANGE_ATTEMPTS):
            stored = await self.instance(name)
            view = InstanceView.of(stored.value, stored.kv.mod_revision, await self.status(name))
            wanted = change(view.record, view.status)
            if wanted is None or wanted == view.record:
                return view
            result = await self.store.txn(
                [unchanged(stored.kv)], [Put(stored.kv.key, encode(wanted), stored.kv.lease)]
            )
            if result.succeeded:
                return InstanceView(wanted, view.status, result.revision)
            await asyncio.sleep(0.001 * attempt)
        raise Conflict(f"{name} is being changed by others all the time", hint="try again in a moment")

    async def remove_instance(self, name: str, uid: str) -> bool:
        """Delete record, status and snapshots in one revision, if the record still is the one of `uid`."""
        while True:
            stored = await self.find_instance(name)
            if stored is None or stored.value.uid != uid:
                return False
            result = await self.store.txn(
                [unchanged(stored.kv)],
                [
                    Delete(keys.snapshots_of(name), prefix=True),
                    Delete(keys.instance(name)),
                    Delete(keys.status(name)),
                    Delete(keys.trials(name)),
                ],
            )
            if result.succeeded:
                return True

    async def _no_instance(self, name: str) -> Stored[InstanceRecord]:
        listing = await self.store.list(keys.INSTANCES)
        known = [keys.name_of(kv.key) for kv in listing.items]
        raise not_found("instance", name, known, "see what there is: inn list")

    # -- status ------------------------------------------------------------------------------------

    async def status(self, name: str) -> tuple[StatusRecord, int] | None:
        """What was observed, with the revision of that; None if nothing was yet."""
        kv = await self.store.get(keys.status(name))
        return (decode(StatusRecord, kv), kv.mod_revision) if kv else None

    async def put_status(
        self, name: str, uid: str, status: InstanceStatus, *, durable: bool = False
    ) -> int | None:
        """Write what was observed; None, and nothing written, when the instance is gone.

        The revision of the write otherwise. Not synced unless `durable`: it can be observed again.
        """
        record = StatusRecord.of(uid, status)
        result = await self.store.txn(
            [exists(keys.instance(name))], [Put(keys.status(name), encode(record))], durable=durable
        )
        return result.revision if result.succeeded else None

    # -- waiting -----------------------------------------------------------------------------------

    async def settle(self, name: str, generation: int, limit: Limit, *, uid: str = "") -> InstanceView:
        """Wait until the agent has answered for `generation`.

        Returns the view then, raises the agent's failure as its class of error, NotFound when the
        instance went away (or is another of the same name: give `uid` to be sure), GuestTimeout at
        the deadline.
        """
        return await settle.settle(self.store, name, generation, limit, uid=uid)

    async def settle_removed(self, name: str, generation: int, deadline_s: float, *, uid: str) -> int:
        """Wait until the instance is gone; the revision of its end. Raises as `settle` does."""
        return await settle.settle_removed(self.store, name, generation, deadline_s, uid=uid)

    async def wait_for(
        self, name: str, predicate: Predicate, limit: Limit, *, gone_ok: bool = False
    ) -> InstanceView:
        """Wait until `predicate(view)` is true; it raises to give up. GuestTimeout at the deadline.

        When the instance goes away meanwhile: NotFound, or with `gone_ok` its last view.
        """
        return await settle.wait_for(self.store, name, predicate, limit, gone_ok=gone_ok)

    # -- images ------------------------------------------------------------------------------------

    async def find_image(self, name: str) -> Stored[ImageRecord] | None:
        kv = await self.store.get(keys.image(name))
        return Stored(decode(ImageRecord, kv), kv) if kv else None

    async def image(self, name: str) -> Stored[ImageRecord]:
        """One image, or NotFound with what to do about it."""
        found = await self.find_image(name)
        if found is None:
            known = [image.name for image in await self.images()]
            builtin = name if name in ("tiny", "debian") else "tiny"
            raise not_found("image", name, known, f"build one: inn image build {builtin}")
        return found

    async def images(self) -> list[ImageRecord]:
        """All images, sorted by name."""
        return [decode(ImageRecord, kv) for kv in (await self.store.list(keys.IMAGES)).items]

    async def put_image(self, record: ImageRecord, *, replaces: KeyValue | None = None) -> int:
        """Name an image: a new name, or instead of exactly `replaces`. Raises NameTaken, Conflict."""
        key = keys.image(record.name)
        guard = unchanged(replaces) if replaces else absent(key)
        result = await self.store.txn([guard], [Put(key, encode(record))])
        if result.succeeded:
            return result.revision
        if replaces:
            raise Conflict(f"Image {record.name} was changed at the same time", hint="try once more")
        raise NameTaken(
            f"There is an image named {record.name} already",
            hint=f"choose another name, or remove it: inn image rm {record.name}",
        )

    async def delete_image(self, name: str) -> bool:
        """Forget an image's name; False if there was none. Its files are the image service's."""
        key = keys.image(name)
        return (await self.store.txn([exists(key)], [Delete(key)])).succeeded

    # -- hosts -------------------------------------------------------------------------------------

    async def host(self, name: str) -> HostRecord:
        kv = await self.store.get(keys.host(name))
        if kv is None:
            raise not_found("host", name, [host.name for host in await self.hosts()])
        return decode(HostRecord, kv)

    async def hosts(self) -> list[HostRecord]:
        """All hosts whose daemon lives, sorted by name."""
        return [decode(HostRecord, kv) for kv in (await self.store.list(keys.HOSTS)).items]

    async def put_host(self, record: HostRecord, *, lease: int = NO_LEASE) -> int:
        """Write a host's facts, under its daemon's lease. Not synced: they are found anew."""
        put = Put(keys.host(record.name), encode(record), lease)
        return (await self.store.txn([], [put], durable=False)).revision


def _pair(stored: Stored[StatusRecord] | None) -> tuple[StatusRecord, int] | None:
    return (stored.value, stored.kv.mod_revision) if stored else None
