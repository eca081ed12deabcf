"""What a request means, as functions of values: no state, no I/O, the same for every back-end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final

from innkeeper.errors import BadRequest
from innkeeper.store.kv import (
    MAX_VALUE_BYTES,
    Compare,
    Delete,
    Event,
    EventKind,
    Field,
    KeyValue,
    Op,
    Put,
    Relation,
)

# SQLite packs (revision, place in the revision) into one 63-bit row id; this leaves 2^43 revisions,
# at 1000 writes a second enough for 278 years.
SUB_BITS: Final = 20
MAX_EVENTS_PER_TXN: Final = 1 << SUB_BITS

_LAST_CODE_POINT: Final = 0x10FFFF
_SURROGATES: Final = range(0xD800, 0xE000)  # not characters: UTF-8 cannot carry them


def check_prefix(prefix: str) -> None:
    """Raise BadRequest for text that cannot be (the start of) a key; the empty prefix is every key."""
    if "\0" in prefix or any(ord(char) in _SURROGATES for char in prefix if char > "\ud7ff"):
        raise BadRequest(f"key {prefix!r} has a NUL or a character that UTF-8 cannot carry")


def check_key(key: str) -> None:
    """Raise BadRequest for text that cannot be a key."""
    if not key:
        raise BadRequest("a key must not be empty")
    check_prefix(key)


def check_revision(revision: int) -> None:
    """Raise BadRequest for a negative revision."""
    if revision < 0:
        raise BadRequest(f"revision {revision} is negative")


def check_ttl(ttl_s: float) -> None:
    """Raise BadRequest unless `ttl_s` is a positive, finite number of seconds."""
    if not (math.isfinite(ttl_s) and ttl_s > 0):
        raise BadRequest(f"a lease cannot last {ttl_s} s")


def check_txn(compares: Sequence[Compare], then: Sequence[Op]) -> None:
    """Raise BadRequest for a transaction that is wrong whatever the store holds."""
    for compare in compares:
        check_key(compare.key)
        if isinstance(compare.target, bytes) != (compare.field is Field.VALUE):
            raise BadRequest(f"{compare.field.value} of {compare.key!r} compared with {compare.target!r:.40}")
    for op in then:
        if isinstance(op, Delete) and op.prefix:
            check_prefix(op.key)
        else:
            check_key(op.key)
        if isinstance(op, Put) and len(op.value) > MAX_VALUE_BYTES:
            raise BadRequest(
                f"the value of {op.key!r} has {len(op.value)} bytes; at most {MAX_VALUE_BYTES} are allowed"
            )
    _check_distinct(then)


def _check_distinct(then: Sequence[Op]) -> None:
    # Sorted, everything a prefix covers follows it at once: looking at neighbours is enough.
    named = sorted((op.key, isinstance(op, Delete) and op.prefix) for op in then)
    for (first, is_prefix), (second, _) in pairwise(named):
        if first == second or (is_prefix and second.startswith(first)):
            raise BadRequest(f"the transaction names {second!r} twice")


def prefix_end(prefix: str) -> str | None:
    """The first key after all that start with `prefix`; None when no key can follow."""
    while prefix:
        code = ord(prefix[-1]) + 1
        prefix = prefix[:-1]
        if code <= _LAST_CODE_POINT:
            return prefix + chr(_SURROGATES.stop if code in _SURROGATES else code)
    return None


def holds(compare: Compare, kv: KeyValue | None) -> bool:
    """Whether `compare` is true of `kv`, None being a missing key."""
    seen: int | bytes
    match compare.field:
        case Field.VALUE:
            seen = kv.value if kv else b""
        case Field.MOD_REVISION:
            seen = kv.mod_revision if kv else 0
        case Field.CREATE_REVISION:
            seen = kv.create_revision if kv else 0
        case Field.VERSION:
            seen = kv.version if kv else 0
        case Field.LEASE:
            seen = kv.lease if kv else 0
    return _related(seen, compare.relation, compare.target)


def _related(seen: int | bytes, relation: Relation, target: int | bytes) -> bool:
    match relation:
        case Relation.EQUAL:
            return seen == target
        case Relation.NOT_EQUAL:
            return seen != target
        # check_txn saw to it that both sides are of one type, which mypy cannot know
        case Relation.GREATER:
            return seen > target  # type: ignore[operator]
        case Relation.LESS:
            return seen < target  # type: ignore[operator]


def put_event(op: Put, revision: int, previous: KeyValue | None) -> Event:
    created, version = (previous.create_revision, previous.version + 1) if previous else (revision, 1)
    return Event(EventKind.PUT, KeyValue(op.key, op.value, created, revision, version, op.lease), previous)


def tombstone(key: str, revision: int) -> KeyValue:
    """What a DELETE event carries: no value, nothing of the key's life but the revision of its end."""
    return KeyValue(key, b"", create_revision=0, mod_revision=revision, version=0)


def delete_event(previous: KeyValue, revision: int) -> Event:
    return Event(EventKind.DELETE, tombstone(previous.key, revision), previous)


def build_events(
    then: Sequence[Op],
    revision: int,
    known: Mapping[str, KeyValue | None],
    get: Callable[[str], KeyValue | None],
    scan: Callable[[str], list[KeyValue]],
) -> list[Event]:
    """The events of `then` applied as `revision`, in the order of the operations, a prefix in key order.

    `known` saves looking up again what the compares looked up. Deleting what is not there is no event.
    """
    events: list[Event] = []
    for op in then:
        if isinstance(op, Delete) and op.prefix:
            events.extend(delete_event(kv, revision) for kv in scan(op.key))
            continue
        previous = known[op.key] if op.key in known else get(op.key)
        if isinstance(op, Put):
            events.append(put_event(op, revision, previous))
        elif previous is not None:
            events.append(delete_event(previous, revision))
    if len(events) > MAX_EVENTS_PER_TXN:
        raise BadRequest(
            f"a transaction changes {len(events)} keys; at most {MAX_EVENTS_PER_TXN} are allowed"
        )
    return events
