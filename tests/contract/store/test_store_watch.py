"""Watching: every change once, in order, from wherever one starts."""

from __future__ import annotations

import asyncio

import pytest
from store_harness import Harness

from helpers import take
from innkeeper.errors import BadRequest, Compacted, StoreError
from innkeeper.store.kv import Delete, Event, EventKind, KeyValue, Op, Put, Store, Watch
from innkeeper.store.watch import MAX_QUEUED_BATCHES, MAX_QUEUED_BYTES

Seen = list[tuple[int, list[tuple[str, bytes]]]]  # revision, (key, value) of its events


def put(
    key: str, value: bytes, create: int, mod: int, version: int, previous: KeyValue | None = None
) -> Event:
    return Event(EventKind.PUT, KeyValue(key, value, create, mod, version), previous)


def gone(previous: KeyValue, mod: int) -> Event:
    return Event(EventKind.DELETE, KeyValue(previous.key, b"", 0, mod, 0), previous)


async def fill(kv: Store) -> list[list[Event]]:
    """Four revisions; returns what a watch of everything must say about them."""
    steps: list[list[Op]] = [
        [Put("b", b"1"), Put("a", b"1"), Put("c/x", b"")],
        [Put("a", b"2")],
        [Delete("c/", prefix=True), Delete("b"), Put("c", b"")],
        [Put("b", b"new")],
    ]
    for step in steps:
        await kv.txn([], step)
    a1, b1, cx = KeyValue("a", b"1", 1, 1, 1), KeyValue("b", b"1", 1, 1, 1), KeyValue("c/x", b"", 1, 1, 1)
    return [
        [put("b", b"1", 1, 1, 1), put("a", b"1", 1, 1, 1), put("c/x", b"", 1, 1, 1)],
        [put("a", b"2", 1, 2, 2, a1)],
        [gone(cx, 3), gone(b1, 3), put("c", b"", 3, 3, 1)],
        [put("b", b"new", 4, 4, 1)],
    ]


def test_watch_from_now(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put("a", b"before")])
        async with kv.watch("") as watch:
            await kv.txn([], [Put("x", b"1")])
            await kv.txn([], [Put("y", b"2")], durable=False)
            assert await take(watch, 2) == [[put("x", b"1", 2, 2, 1)], [put("y", b"2", 3, 3, 1)]]

    store.run(check)


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_watch_from_a_past_revision(store: Harness, first: int) -> None:
    async def check(kv: Store) -> None:
        expected = await fill(kv)
        async with kv.watch("", from_revision=first) as watch:
            await kv.txn([], [Put("live", b"")])
            live = [put("live", b"", 5, 5, 1)]
            assert await take(watch, 6 - first) == [*expected[first - 1 :], live]

    store.run(check)


def test_live_events_are_the_same_as_replayed_ones(store: Harness) -> None:
    async def check(kv: Store) -> None:
        async with kv.watch("") as watch:
            expected = await fill(kv)
            assert await take(watch, 4) == expected

    store.run(check)


def test_watch_of_a_prefix(store: Harness) -> None:
    async def check(kv: Store) -> None:
        expected = await fill(kv)
        only = [[event for event in batch if event.kv.key.startswith("c")] for batch in expected]
        async with kv.watch("c", from_revision=1) as watch:
            await kv.txn([], [Put("d", b""), Put("b", b"")])
            await kv.txn([], [Put("c", b"end")])
            *replayed, last = await take(watch, 3)
            assert replayed == [batch for batch in only if batch]
            assert [event.kv.value for event in last] == [b"end"]

    store.run(check)


def test_watch_from_a_future_revision(store: Harness) -> None:
    async def check(kv: Store) -> None:
        async with kv.watch("", from_revision=3) as watch:
            for value in (b"1", b"2", b"3", b"4"):
                await kv.txn([], [Put("a", value)])
            batches = await take(watch, 2)
            assert [(e.kv.mod_revision, e.kv.value) for (e,) in batches] == [(3, b"3"), (4, b"4")]

    store.run(check)


def test_listing_then_watching_misses_nothing(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put("a", b"1")])
        listing = await kv.list("")
        await kv.txn([], [Put("a", b"2")])
        async with kv.watch("", from_revision=listing.revision + 1) as watch:
            ((event,),) = await take(watch, 1)
            assert event.kv.value == b"2"
            assert event.previous == listing.items[0]

    store.run(check)


def test_negative_revision_is_refused(store: Harness) -> None:
    async def check(kv: Store) -> None:
        with pytest.raises(BadRequest):
            async with kv.watch("", from_revision=-1):
                pass

    store.run(check)


def test_no_gap_and_no_duplicate_under_concurrent_writes(store: Harness) -> None:
    writers, writes_each, watchers = 4, 60, 12

    async def check(kv: Store) -> None:
        written: dict[int, list[tuple[str, bytes]]] = {}
        started = 0
        tasks: list[asyncio.Task[tuple[str, int, Seen]]] = []

        async def write(name: int) -> None:
            for number in range(writes_each):
                value = f"{name}.{number}".encode()
                keys = [f"w/{name}", f"shared/{number % 3}", f"x/{name}"]
                result = await kv.txn([], [Put(key, value) for key in keys], durable=number % 20 == 0)
                written[result.revision] = [(key, value) for key in keys]
                start_watcher()

        def start_watcher() -> None:
            nonlocal started
            if len(written) % (writers * writes_each // watchers) == 0:
                # in turn: everything, from a revision that is history by now, from now on
                first = [1, max(1, len(written) // 2), 0][started % 3]
                tasks.append(asyncio.create_task(follow("" if started % 2 else "shared/", first)))
                started += 1

        async def follow(prefix: str, first: int) -> tuple[str, int, Seen]:
            seen: Seen = []
            async with kv.watch(prefix, from_revision=first) as watch:
                async for batch in watch:
                    revision = batch[0].kv.mod_revision
                    seen.append((revision, [(event.kv.key, event.kv.value) for event in batch]))
                    if batch[-1].kv.key == "shared/end":
                        break
            return prefix, first, seen

        await asyncio.gather(*(write(name) for name in range(writers)))
        last = await kv.txn([], [Put("shared/end", b"")])
        written[last.revision] = [("shared/end", b"")]
        assert sorted(written) == list(range(1, writers * writes_each + 2))
        assert started == watchers
        for prefix, first, seen in await asyncio.gather(*tasks):
            assert seen == [
                (revision, [pair for pair in written[revision] if pair[0].startswith(prefix)])
                for revision in range(first or seen[0][0], last.revision + 1)
            ]

    store.run(check)


def test_a_slow_watcher_ends_with_an_error_and_the_others_go_on(store: Harness) -> None:
    async def check(kv: Store) -> None:
        async with kv.watch("") as slow, kv.watch("other/") as other:
            for number in range(MAX_QUEUED_BATCHES):
                await kv.txn([], [Put("a", b"%d" % number)], durable=False)
            await kv.txn([], [Put("other/x", b"")])
            for _ in range(2):  # and it stays ended
                with pytest.raises(StoreError, match="behind"):
                    await take(slow, 1)
            assert len(await take(other, 1)) == 1

    store.run(check)


def test_a_full_queue_is_still_delivered(store: Harness) -> None:
    async def check(kv: Store) -> None:
        async with kv.watch("") as watch:
            for number in range(MAX_QUEUED_BATCHES):
                await kv.txn([], [Put("a", b"%d" % number)], durable=False)
            batches = await take(watch, MAX_QUEUED_BATCHES)
            assert [event.kv.mod_revision for (event,) in batches] == list(range(1, MAX_QUEUED_BATCHES + 1))

    store.run(check)


def test_the_queue_is_bounded_in_bytes_too(store: Harness) -> None:
    async def check(kv: Store) -> None:
        value = b"x" * (1 << 20)
        async with kv.watch("") as watch:
            for number in range(MAX_QUEUED_BYTES // len(value) + 1):
                await kv.txn([], [Put(f"a{number % 2}/{number}", value)], durable=False)
            with pytest.raises(StoreError, match="behind"):
                await take(watch, 1)

    store.run(check)


def test_closing_the_store_ends_watches(store: Harness) -> None:
    async def check(kv: Store) -> None:
        async def follow(watch: Watch) -> None:
            await take(watch, 1000)

        async with kv.watch("") as idle, kv.watch("", from_revision=1) as unread:
            await kv.txn([], [Put("a", b"")])
            await take(idle, 1)
            waiting = asyncio.create_task(follow(idle))
            await asyncio.sleep(0)  # lets it reach its wait
            await kv.close()
            with pytest.raises(StoreError, match="closed"):
                await waiting
            with pytest.raises(StoreError, match="closed"):
                await take(unread, 1)

    store.run(check)


def test_a_watch_that_was_left_ends(store: Harness) -> None:
    async def check(kv: Store) -> None:
        async with kv.watch("") as watch:
            pass
        await kv.txn([], [Put("a", b"")])
        with pytest.raises(StoreError, match="left"):
            await take(watch, 1)

    store.run(check)


def test_a_cancelled_read_loses_nothing(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put("a", b"1")])
        for first, turns in [(1, 0), (1, 1), (1, 2), (0, 1)]:
            async with kv.watch("", from_revision=first) as watch:
                reading = asyncio.create_task(take(watch, 1))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if not reading.done():
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
                result = await kv.txn([], [Put("a", b"2")])
                expected = [*range(first or result.revision, result.revision + 1)]
                if not reading.cancelled():
                    expected = expected[1:]
                batches = await take(watch, len(expected))
                assert [event.kv.mod_revision for (event,) in batches] == expected

    store.run(check)


def test_compacted(store: Harness) -> None:
    async def check(kv: Store) -> None:
        expected = await fill(kv)
        await kv.compact(3)
        for first in (1, 2):
            async with kv.watch("", from_revision=first) as watch:
                with pytest.raises(Compacted):
                    await take(watch, 1)
        async with kv.watch("", from_revision=3) as watch:
            assert await take(watch, 2) == expected[2:]
        await kv.compact(4)
        async with kv.watch("", from_revision=4) as watch:
            assert await take(watch, 1) == expected[3:]

    store.run(check)


def test_compaction_before_the_first_read(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await fill(kv)
        async with kv.watch("", from_revision=1) as behind, kv.watch("") as live:
            await kv.txn([], [Put("z", b"")])
            await kv.compact(5)
            with pytest.raises(Compacted):
                await take(behind, 1)
            # what was queued already is not history any more
            assert len(await take(live, 1)) == 1

    store.run(check)


def test_previous_of_a_change_right_at_the_floor(store: Harness) -> None:
    async def check(kv: Store) -> None:
        await kv.txn([], [Put("a", b"1"), Put("b", b"1")])
        await kv.txn([], [Put("a", b"2")])
        old = (await kv.list("")).items
        await kv.txn([], [Put("a", b"3"), Delete("b")])
        await kv.compact(3)
        async with kv.watch("", from_revision=3) as watch:
            (batch,) = await take(watch, 1)
            assert [event.previous for event in batch] == old

    store.run(check)


def test_a_long_history_is_replayed_whole(store: Harness) -> None:
    async def check(kv: Store) -> None:
        # more than SQLite hands out in one step, in number and (the last few) in bytes
        for number in range(1100):
            await kv.txn([], [Put(f"k/{number % 7}", b"%d" % number)], durable=False)
        for _ in range(12):
            await kv.txn([], [Put("big", b"x" * (1 << 20))], durable=False)
        async with kv.watch("", from_revision=2) as watch:
            batches = await take(watch, 1111)
            assert [event.kv.mod_revision for (event,) in batches] == list(range(2, 1113))
        async with kv.watch("big", from_revision=1) as watch:
            assert [event.kv.version for (event,) in await take(watch, 12)] == list(range(1, 13))

    store.run(check)
