"""Leases: keys that go away when nobody says any more that they should stay."""

from __future__ import annotations

import math

import pytest
from store_harness import Harness

from helpers import take
from innkeeper.errors import BadRequest, NotFound
from innkeeper.store.kv import NO_LEASE, Compare, Delete, EventKind, Field, Put, Relation, Store


async def keys(kv: Store) -> list[str]:
    return [item.key for item in (await kv.list("")).items]


def test_granting_takes_no_revision_and_ids_differ(store: Harness) -> None:
    async def check(kv: Store) -> None:
        leases = [await kv.lease_grant(10), await kv.lease_grant(10)]
        await kv.lease_revoke(leases[1])
        leases.append(await kv.lease_grant(10))
        assert len(set(leases)) == 3
        assert NO_LEASE not in leases
        assert await kv.revision() == 0

    store.run(check)


@pytest.mark.parametrize("ttl_s", [0, -1, math.nan, math.inf])
def test_impossible_ttl(store: Harness, ttl_s: float) -> None:
    async def check(kv: Store) -> None:
        with pytest.raises(BadRequest):
            await kv.lease_grant(ttl_s)

    store.run(check)


def test_expiry_deletes_all_its_keys_in_one_revision(store: Harness) -> None:
    async def check(kv: Store) -> None:
        lease, other = await kv.lease_grant(10), await kv.lease_grant(30)
        await kv.txn([], [Put("b", b"1", lease), Put("stays", b"")])
        await kv.txn([], [Put("a", b"2", lease), Put("later", b"", other)])
        found = await kv.get("a")
        assert found is not None
        assert found.lease == lease
        async with kv.watch("") as watch:
            store.clock.advance(9.999)
            assert await store.expire() == 0
            assert await kv.revision() == 2
            store.clock.advance(0.001)
            await store.expire()
            ((first, second),) = await take(watch, 1)
        assert [(e.kind, e.kv.key, e.kv.mod_revision) for e in (first, second)] == [
            (EventKind.DELETE, "a", 3),
            (EventKind.DELETE, "b", 3),
        ]
        assert first.previous == found
        assert await keys(kv) == ["later", "stays"]
        assert await store.expire() == 0
        assert await kv.revision() == 3

    store.run(check)


def test_the_stores_own_timer_ends_leases(store: Harness) -> None:
    async def check(kv: Store) -> None:
        # the second is due before what the timer waits for, and the third after
        for ttl_s in (20, 10, 30):
            lease = await kv.lease_grant(ttl_s)
            await kv.txn([], [Put(f"{ttl_s}", b"", lease)])
        async with kv.watch("") as watch:
            for expected in ("10", "20", "30"):
                store.clock.advance(10)
                ((event,),) = await take(watch, 1)
                assert (event.kind, event.kv.key) == (EventKind.DELETE, expected)

    store.run(check)


def test_keepalive_starts_the_time_anew(store: Harness) -> None:
    async def check(kv: Store) -> None:
        lease = await kv.lease_grant(10)
        await kv.txn([], [Put("a", b"", lease)])
        for _ in range(3):
            store.clock.advance(9)
            assert await kv.lease_keepalive(lease) == 10
            await store.expire()
        assert await keys(kv) == ["a"]
        async with kv.watch("") as watch:
            store.clock.advance(10)
            assert len(await take(watch, 1)) == 1  # by the timer, though it was armed for earlier
        assert await keys(kv) == []

    store.run(check)


def test_a_lease_past_its_time_cannot_be_used(store: Harness) -> None:
    async def check(kv: Store) -> None:
        lease = await kv.lease_grant(10)
        await kv.txn([], [Put("a", b"", lease)])
        store.clock.advance(10)
        with pytest.raises(NotFound):
            await kv.lease_keepalive(lease)
        with pytest.raises(NotFound):
            await kv.txn([], [Put("b", b"", lease)])
        await store.expire()
        assert await keys(kv) == []
        for call in (kv.lease_keepalive, kv.lease_revoke):
            with pytest.raises(NotFound):
                await call(lease)

    store.run(check)


def test_revoke(store: Harness) -> None:
    async def check(kv: Store) -> None:
        lease = await kv.lease_grant(10)
        await kv.txn([], [Put("b", b"", lease), Put("a", b"", lease), Put("c", b"")])
        async with kv.watch("") as watch:
            await kv.lease_revoke(lease)
            ((first, second),) = await take(watch, 1)
        assert [first.kv.key, second.kv.key] == ["a", "b"]
        assert await keys(kv) == ["c"]
        with pytest.raises(NotFound):
            await kv.lease_revoke(lease)
        with pytest.raises(NotFound):
            await kv.lease_keepalive(lease)

    store.run(check)


def test_revoke_without_keys_takes_no_revision(store: Harness) -> None:
    async def check(kv: Store) -> None:
        lease = await kv.lease_grant(10)
        await kv.lease_revoke(lease)
        assert await kv.revision() == 0
        with pytest.raises(NotFound):
            await kv.lease_keepalive(lease)

    store.run(check)


def test_the_last_put_decides_which_lease_a_key_hangs_on(store: Harness) -> None:
    async def check(kv: Store) -> None:
        first, second = await kv.lease_grant(10), await kv.lease_grant(10)
        await kv.txn([], [Put(key, b"", first) for key in ("freed", "moved", "deleted", "kept")])
        await kv.txn([], [Put("freed", b""), Put("moved", b"", second), Delete("deleted")])
        await kv.txn([], [Put("deleted", b"made again")])
        await kv.lease_revoke(first)
        assert await keys(kv) == ["deleted", "freed", "moved"]
        await kv.lease_revoke(second)
        assert await keys(kv) == ["deleted", "freed"]

    store.run(check)


def test_a_write_fenced_by_a_lease_key(store: Harness) -> None:
    async def check(kv: Store) -> None:
        lease = await kv.lease_grant(10)
        await kv.txn([], [Put("lock", b"me", lease)])
        mine = Compare("lock", Field.LEASE, Relation.EQUAL, lease)
        assert (await kv.txn([mine], [Put("data", b"1")])).succeeded
        store.clock.advance(10)
        await store.expire()
        assert not (await kv.txn([mine], [Put("data", b"2")])).succeeded

    store.run(check)


def test_leases_that_end_together_end_one_by_one(store: Harness) -> None:
    async def check(kv: Store) -> None:
        for name in ("a", "b"):
            lease = await kv.lease_grant(10)
            await kv.txn([], [Put(name, b"", lease)])
        async with kv.watch("") as watch:
            store.clock.advance(11)
            batches = await take(watch, 2)
        assert [event.kv.key for (event,) in batches] == ["a", "b"]

    store.run(check)
