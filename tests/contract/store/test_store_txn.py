"""Reading and writing: transactions, compares, listings, history."""

from __future__ import annotations

import pytest
from store_harness import Harness

from innkeeper.errors import BadRequest, Compacted, NotFound, StoreError
from innkeeper.store.kv import (
    MAX_VALUE_BYTES,
    Compare,
    Delete,
    Field,
    KeyValue,
    Op,
    Put,
    Relation,
    Store,
    absent,
    exists,
    unchanged,
)


def test_new_store_is_empty(store: Harness) -> None:
    async def check(kv: Store) -> None:
        assert await kv.revision() == 0
        assert await kv.get("a") is None
        listing = await kv.list("")
        assert (listing.items, listing.revision) == ([], 0)

    store.run(check)


def test_put_and_get(store: Harness) -> None:
    async def check(kv: Store) -> None:
        result = await kv.txn([], [Put("a", b"1")])
        assert (result.succeeded, result.revision, result.current) == (True, 1, {})
        await kv.txn([], [Put("other", b"")])
        await kv.txn([], [Put("a", b"2\x00\xff")], durable=False)
        assert await kv.get("a") == KeyValue("a", b"2\x00\xff", 1, 3, 2)
        assert await kv.get("b") is None
        assert await kv.revision() == 3

    store.run(check)


def test_several_operations_are_one_revision(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put("old", b"")])
        result = await kv.txn([], [Put("a", b"1"), Delete("old"), Put("b", b"2")])
        assert result.revision == 2
        items = (await kv.list("")).items
        assert items == [KeyValue("a", b"1", 2, 2, 1), KeyValue("b", b"2", 2, 2, 1)]

    store.run(check)


def test_nothing_to_change_takes_no_revision(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put("a", b"")])
        for ops in ([], [Delete("missing")], [Delete("missing/", prefix=True)]):
            result = await kv.txn([], ops)
            assert (result.succeeded, result.revision) == (True, 1)
        assert await kv.revision() == 1

    store.run(check)


def test_compare_and_swap(store: Harness) -> None:
    async def check(kv: Store) -> None:
        assert (await kv.txn([absent("a")], [Put("a", b"1")])).succeeded
        first = await kv.get("a")
        assert first is not None
        lost = await kv.txn([absent("a")], [Put("a", b"x")])
        assert (lost.succeeded, lost.revision, lost.current) == (False, 1, {"a": first})
        assert (await kv.txn([unchanged(first)], [Put("a", b"2")])).succeeded
        lost = await kv.txn([unchanged(first)], [Put("a", b"x")])
        assert not lost.succeeded
        assert lost.current["a"].value == b"2"
        assert (await kv.txn([exists("a")], [Delete("a")])).succeeded
        lost = await kv.txn([exists("a")], [Put("a", b"x")])
        assert (lost.succeeded, lost.revision, lost.current) == (False, 3, {})

    store.run(check)


def test_all_compares_must_hold(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put("lock", b"me"), Put("spec", b"1")])
        held = Compare("lock", Field.VALUE, Relation.EQUAL, b"me")
        assert (await kv.txn([held, exists("spec"), absent("new")], [Put("new", b"")])).succeeded
        before = await kv.list("")
        lost = await kv.txn([held, exists("spec"), absent("new")], [Put("spec", b"2"), Delete("lock")])
        assert not lost.succeeded
        assert lost.current == {item.key: item for item in before.items}
        assert await kv.list("") == before

    store.run(check)


@pytest.mark.parametrize("field", list(Field))
@pytest.mark.parametrize("present", [True, False])
def test_every_field_and_relation(store: Harness, field: Field, present: bool) -> None:
    async def check(kv: Store) -> None:
        lease = await kv.lease_grant(60)
        await kv.txn([], [Put("filler", b"")])
        if present:
            await kv.txn([], [Put("a", b"l")])
            await kv.txn([], [Put("a", b"m", lease)])
        seen = {
            Field.MOD_REVISION: 3,
            Field.CREATE_REVISION: 2,
            Field.VERSION: 2,
            Field.LEASE: lease,
        }
        targets: list[tuple[int | bytes, int]]  # (target, sign of what is there compared with it)
        if field is Field.VALUE:
            targets = [(b"l", 1), (b"m", 0), (b"n", -1)] if present else [(b"", 0), (b"a", -1)]
        else:
            there = seen[field] if present else 0
            targets = [(there - 1, 1), (there, 0), (there + 1, -1)]
        for target, sign in targets:
            truth = {
                Relation.EQUAL: sign == 0,
                Relation.NOT_EQUAL: sign != 0,
                Relation.GREATER: sign > 0,
                Relation.LESS: sign < 0,
            }
            for relation in Relation:
                result = await kv.txn([Compare("a", field, relation, target)], [])
                assert result.succeeded is truth[relation], (relation, target)

    store.run(check)


def test_create_after_delete_starts_anew(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put("a", b"1")])
        await kv.txn([], [Put("a", b"2")])
        await kv.txn([], [Delete("a")])
        assert await kv.get("a") is None
        await kv.txn([], [Put("a", b"3")])
        assert await kv.get("a") == KeyValue("a", b"3", 4, 4, 1)

    store.run(check)


def test_delete_prefix(store: Harness) -> None:
    async def check(kv: Store) -> None:
        names = ["vm", "vm/", "vm/a", "vm/b/c", "vm0", "vn"]
        await kv.txn([], [Put(name, b"") for name in names])
        result = await kv.txn([], [Delete("vm/", prefix=True), Put("x", b"")])
        assert result.revision == 2
        assert [item.key for item in (await kv.list("")).items] == ["vm", "vm0", "vn", "x"]
        await kv.txn([], [Delete("", prefix=True)])
        assert (await kv.list("")).items == []

    store.run(check)


ODD_KEYS = [
    "a",
    "a/",
    "a/b",
    "a\x7f",
    "a\ud7ff",
    "a\ue000",
    "aé",
    "a\uffff",
    "a\U0010ffff",
    "b",
    "\U0010ffff",
]


def test_list_is_sorted_and_exact(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put(key, b"") for key in reversed(ODD_KEYS)])
        for prefix in ["", "a", "a/", "a\ud7ff", "a\U0010ffff", "\U0010ffff", "c", *ODD_KEYS]:
            listing = await kv.list(prefix)
            expected = sorted((key for key in ODD_KEYS if key.startswith(prefix)), key=str.encode)
            assert [item.key for item in listing.items] == expected, prefix
            assert listing.revision == 1

    store.run(check)


def test_list_at_a_revision(store: Harness) -> None:
    async def check(kv: Store) -> None:
        steps: list[list[Op]] = [
            [Put("a", b"1"), Put("b", b"1"), Put("other", b"")],
            [Put("a", b"2")],
            [Delete("b"), Put("c", b"1")],
            [Put("b", b"again")],
            [Delete("", prefix=True)],
            [Put("a", b"3")],
        ]
        seen = []
        for step in steps:
            await kv.txn([], step)
            seen.append(await kv.list(""))
        for listing in seen:
            assert await kv.list("", revision=listing.revision) == listing
        assert [item.key for item in (await kv.list("b", revision=4)).items] == ["b"]
        assert (await kv.list("b", revision=3)).items == []

    store.run(check)


def test_future_and_negative_revisions_are_refused(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put("a", b"")])
        for revision in (2, 1 << 50, -1):
            with pytest.raises(BadRequest):
                await kv.list("", revision=revision)
            with pytest.raises(BadRequest):
                await kv.compact(revision)

    store.run(check)


def test_compaction_keeps_what_is_current_and_what_comes_after(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put("kept", b"0"), Put("a", b"1"), Put("gone", b"")])  # 1
        await kv.txn([], [Delete("gone")])  # 2
        await kv.txn([], [Put("a", b"2")])  # 3
        await kv.txn([], [Put("a", b"3"), Delete("kept")])  # 4
        await kv.txn([], [Put("a", b"4")])  # 5
        at = {revision: await kv.list("", revision=revision) for revision in range(1, 6)}
        await kv.compact(3)
        for revision in (1, 2):
            with pytest.raises(Compacted):
                await kv.list("", revision=revision)
        for revision in (3, 4, 5):
            assert await kv.list("", revision=revision) == at[revision]
        await kv.compact(2)  # behind: a no-op
        await kv.compact(3)
        assert await kv.list("", revision=3) == at[3]
        await kv.compact(5)
        assert await kv.list("", revision=5) == at[5]
        assert await kv.list("") == at[5]
        assert await kv.revision() == 5
        assert (await kv.txn([exists("a")], [Put("gone", b"")])).revision == 6
        assert await kv.get("gone") == KeyValue("gone", b"", 6, 6, 1)

    store.run(check)


def test_compaction_of_a_store_that_ends_with_a_deletion(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put("a", b"")])
        await kv.txn([], [Delete("a")])
        await kv.compact(2)
        assert await kv.revision() == 2
        assert (await kv.txn([absent("a")], [Put("a", b"")])).revision == 3

    store.run(check)


BAD_TXNS: dict[str, tuple[list[Compare], list[Op]]] = {
    "a key twice": ([], [Put("a", b"1"), Put("a", b"2")]),
    "put and delete": ([], [Put("a", b"1"), Delete("a")]),
    "prefix over a put": ([], [Put("a/b", b"1"), Put("z", b""), Delete("a/", prefix=True)]),
    "prefix over itself": ([], [Delete("a", prefix=True), Put("b", b""), Delete("a/b", prefix=True)]),
    "prefix equal to a key": ([], [Delete("a", prefix=True), Delete("a")]),
    "everything": ([], [Delete("", prefix=True), Put("a", b"")]),
    "value too large": ([], [Put("fine", b""), Put("a", b"x" * (MAX_VALUE_BYTES + 1))]),
    "empty key": ([], [Put("", b"")]),
    "delete of the empty key": ([], [Delete("")]),
    "NUL": ([], [Put("a\0b", b"")]),
    "half a surrogate pair": ([], [Put("a\ud800", b"")]),
    "compare of the empty key": ([exists("")], []),
    "text for a number": ([Compare("a", Field.VERSION, Relation.EQUAL, b"1")], []),
    "number for a value": ([Compare("a", Field.VALUE, Relation.EQUAL, 1)], []),
}


@pytest.mark.parametrize("name", BAD_TXNS)
def test_a_wrong_transaction_changes_nothing(store: Harness, name: str) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put("a", b"1"), Put("a/b", b"2")])
        before = await kv.list("")
        with pytest.raises(BadRequest):
            await kv.txn(*BAD_TXNS[name])
        assert await kv.list("") == before

    store.run(check)


def test_neighbours_of_a_prefix_are_not_duplicates(store: Harness) -> None:
    async def check(kv: Store) -> None:
        ops = [Put("a", b""), Delete("a/", prefix=True), Put("a0", b""), Delete("b", prefix=True)]
        assert (await kv.txn([], ops)).succeeded

    store.run(check)


def test_largest_value(store: Harness) -> None:
    async def check(kv: Store) -> None:
        value = bytes(range(256)) * (MAX_VALUE_BYTES // 256)
        await kv.txn([], [Put("a", value)])
        found = await kv.get("a")
        assert found is not None
        assert found.value == value

    store.run(check)


def test_refused_keys_and_prefixes_when_reading(store: Harness) -> None:
    async def check(kv: Store) -> None:
        for key in ("", "a\0", "\udfff"):
            with pytest.raises(BadRequest):
                await kv.get(key)
        for prefix in ("a\0", "\udfff"):
            with pytest.raises(BadRequest):
                await kv.list(prefix)

    store.run(check)


def test_the_callers_lists_may_change_afterwards(store: Harness) -> None:
    async def check(kv: Store) -> None:
        ops: list[Op] = [Put("a", b"")]
        await kv.txn([], ops)
        ops.append(Put("b", b""))
        assert [item.key for item in (await kv.list("")).items] == ["a"]

    store.run(check)


def test_a_closed_store_says_so(store: Harness) -> None:
    async def check(kv: Store) -> None:
        lease = await kv.lease_grant(10)
        await kv.close()
        await kv.close()
        for call in (
            lambda: kv.get("a"),
            lambda: kv.list(""),
            lambda: kv.txn([], []),
            lambda: kv.lease_grant(1),
            lambda: kv.lease_keepalive(lease),
            lambda: kv.lease_revoke(lease),
            lambda: kv.compact(1),
            kv.revision,
        ):
            with pytest.raises(StoreError, match="closed"):
                await call()
        with pytest.raises(StoreError, match="closed"):
            async with kv.watch(""):
                pass

    store.run(check)


def test_unknown_lease_is_found_before_anything_is_written(store: Harness) -> None:
    async def check(kv: Store) -> None:
        with pytest.raises(NotFound):
            await kv.txn([], [Put("a", b""), Put("b", b"", lease=4711)])
        assert await kv.revision() == 0
        assert await kv.get("a") is None

    store.run(check)
