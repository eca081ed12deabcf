"""The SQLite store by itself: transactions, list of 500, latency from commit to watcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from bench.lib.lab import Lab
from bench.lib.sample import Budget, Sample
from innkeeper.store.kv import Put
from innkeeper.store.sqlite import SqliteStore

# About the size of an instance's record.
VALUE = b"x" * 1200


async def run(lab: Lab) -> list[Sample]:
    directory = lab.directory / "store"
    directory.mkdir()
    store = await SqliteStore.open(directory / "store.db")
    try:
        durable, quick = await _interleaved(
            lab.count(300, 20),
            lambda: store.txn([], [Put("instances/one", VALUE)]),
            lambda: store.txn([], [Put("status/one", VALUE)], durable=False),
        )
        for index in range(500):
            await store.txn([], [Put(f"instances/vm-{index:03}", VALUE)], durable=False)
        listing = await _timed(lab.count(200, 20), lambda: store.list("instances/"))
        latency = await _watch_latency(store, lab.count(300, 20))
    finally:
        await store.close()
    return [
        Sample("store.txn-durable", "ms", durable, note="one put of 1.2 kB, on stable storage"),
        Sample("store.txn", "ms", quick, note="the same, not synced"),
        Sample("store.list-500", "ms", listing, Budget(10)),
        Sample("store.watch", "ms", latency, note="from asking for a put to the watcher's batch"),
    ]


async def _timed(count: int, work: Callable[[], Awaitable[object]]) -> list[float]:
    return [await _one(work) for _ in range(count)]


async def _one(work: Callable[[], Awaitable[object]]) -> float:
    begun = time.perf_counter()
    await work()
    return (time.perf_counter() - begun) * 1000


async def _interleaved(count: int, *works: Callable[[], Awaitable[object]]) -> list[list[float]]:
    rounds = [[await _one(work) for work in works] for _ in range(count)]
    return [list(column) for column in zip(*rounds, strict=True)]


async def _watch_latency(store: SqliteStore, count: int) -> list[float]:
    values = []
    async with store.watch("watched/") as watch:
        batches = aiter(watch)
        for _ in range(count):
            begun = time.perf_counter()
            put = asyncio.ensure_future(store.txn([], [Put("watched/one", VALUE)], durable=False))
            await anext(batches)
            values.append((time.perf_counter() - begun) * 1000)
            await put
    return values
