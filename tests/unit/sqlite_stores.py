"""Making, breaking and opening SQLite stores, for their tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import run
from innkeeper.errors import StoreError
from innkeeper.store.core import Core
from innkeeper.store.kv import Put
from innkeeper.store.sqlite import SqliteStore
from innkeeper.store.sqlite_log import SqliteLog


async def on_log(store: SqliteStore, job: Callable[[SqliteLog], Any]) -> Any:
    """Reach behind the store, in its own thread: to break things, or to look at them."""

    def on_core(core: Core) -> Any:
        assert isinstance(core.log, SqliteLog)
        return job(core.log)

    return await store._call(on_core)


async def sql(store: SqliteStore, statement: str) -> list[tuple[Any, ...]]:
    return await on_log(store, lambda log: log._db.execute(statement).fetchall())


def make(path: Path, values: int = 3, size: int = 1) -> None:
    async def fill() -> None:
        store = await SqliteStore.open(path)
        for number in range(values):
            await store.txn([], [Put(f"k/{number}", b"v" * size)], durable=False)
        await store.close()

    run(fill())


def refusal(path: Path) -> StoreError:
    """Opening must fail with a message a user can act on; returns the error."""

    async def attempt() -> StoreError:
        with pytest.raises(StoreError) as caught:
            await SqliteStore.open(path)
        return caught.value

    error = run(attempt())
    assert "\n" not in str(error)
    assert str(path) in error.message
    assert error.hint
    return error


async def reopen(path: Path) -> None:
    await (await SqliteStore.open(path)).close()
