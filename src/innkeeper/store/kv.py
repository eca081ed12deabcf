"""The revisioned key-value interface everything in Innkeeper goes through.

The semantics are etcd's (https://etcd.io/docs/v3.5/learning/api/): one revision counter for the
whole store, every successful transaction that writes takes the next revision and all its events
carry it, keys know the revisions of their creation and last change, a watch replays from a revision
without gap or duplicate, leases delete their keys when they run out. SQLite and memory implement it
here; etcd must be able to without changing a caller.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

MAX_VALUE_BYTES: Final = 1 << 20  # etcd's default request limit is 1.5 MiB; stay under it
NO_LEASE: Final = 0


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int  # 1 at creation, +1 with every change
    lease: int = NO_LEASE


class EventKind(enum.Enum):
    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Event:
    """One change. For DELETE `kv` has an empty value and the revision of the deletion, and
    `previous` what was deleted; for PUT `previous` is what was replaced, or None."""

    kind: EventKind
    kv: KeyValue
    previous: KeyValue | None


class Field(enum.Enum):
    """What a Compare looks at. A missing key has revision 0, version 0, lease 0, empty value."""

    MOD_REVISION = "mod_revision"
    CREATE_REVISION = "create_revision"
    VERSION = "version"
    VALUE = "value"
    LEASE = "lease"


class Relation(enum.Enum):
    EQUAL = "="
    NOT_EQUAL = "!="
    GREATER = ">"
    LESS = "<"


@dataclass(frozen=True, slots=True)
class Compare:
    key: str
    field: Field
    relation: Relation
    target: int | bytes


def absent(key: str) -> Compare:
    return Compare(key, Field.CREATE_REVISION, Relation.EQUAL, 0)


def exists(key: str) -> Compare:
    return Compare(key, Field.CREATE_REVISION, Relation.GREATER, 0)


def unchanged(kv: KeyValue) -> Compare:
    return Compare(kv.key, Field.MOD_REVISION, Relation.EQUAL, kv.mod_revision)


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = NO_LEASE


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key, or all that start with it (`prefix=True`)."""

    key: str
    prefix: bool = False


Op = Put | Delete


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`revision` is the store's revision after the transaction; when a compare failed,
    `current` has the keys compared as they are now (missing keys are missing)."""

    succeeded: bool
    revision: int
    current: dict[str, KeyValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listing:
    """A consistent view: `items` sorted by key, as of `revision`. Watch from `revision + 1`."""

    items: list[KeyValue]
    revision: int


class Watch(Protocol):
    """Batches of events, each batch one revision, in order, without gap or duplicate.

    Ends with Compacted when the start revision is gone, with StoreError when the store closes or
    the watcher falls so far behind that its bounded queue would overflow.
    """

    def __aiter__(self) -> AsyncIterator[list[Event]]: ...


class Store(Protocol):
    async def get(self, key: str) -> KeyValue | None: ...

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        """All keys that start with `prefix`; with `revision`, as they were then (Compacted if gone)."""

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], *, durable: bool = True
    ) -> TxnResult:
        """If every compare holds, apply all operations as one revision, else change nothing.

        No key may be named twice in `then`. With `durable` the change is on stable storage when
        this returns; without it a power cut (not a crash of ours) may lose it: for what was
        observed and can be observed again. Raises StoreFull when the disk is full, StoreError
        otherwise; after either nothing has changed.
        """

    def watch(self, prefix: str, *, from_revision: int = 0) -> AbstractAsyncContextManager[Watch]:
        """Changes under `prefix` from `from_revision` on (0: from now on, as of entering)."""

    async def lease_grant(self, ttl_s: float) -> int:
        """A lease whose keys are deleted when it is not kept alive for `ttl_s` seconds."""

    async def lease_keepalive(self, lease: int) -> float:
        """Start the lease's time anew; returns its ttl. Raises NotFound when it has run out."""

    async def lease_revoke(self, lease: int) -> None:
        """End a lease now; its keys are deleted in one revision. Raises NotFound if unknown."""

    async def compact(self, revision: int) -> None:
        """Forget history older than `revision` (current values stay). Raises BadRequest for a
        revision in the future; a revision already compacted is a no-op."""

    async def revision(self) -> int:
        """The store's current revision; 0 when nothing was ever written."""

    async def close(self) -> None: ...
