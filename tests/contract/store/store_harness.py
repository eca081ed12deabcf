"""Opens a store of a given kind with a fake clock, runs a check on it, closes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from helpers import FakeClock, run
from innkeeper.store.core import LogStore
from innkeeper.store.faulty import FaultyStore
from innkeeper.store.kv import Store
from innkeeper.store.memory import MemoryStore
from innkeeper.store.sqlite import SqliteStore


class Harness:
    def __init__(self, backend: str, directory: Path) -> None:
        self.backend = backend
        self.clock = FakeClock()
        self._directory = directory
        self._raw: LogStore | None = None

    async def _open(self) -> Store:
        if self.backend == "sqlite":
            self._raw = await SqliteStore.open(self._directory / "store.db", self.clock)
            return self._raw
        self._raw = MemoryStore(self.clock)
        return FaultyStore(self._raw) if self.backend == "faulty" else self._raw

    def run(self, check: Callable[[Store], Awaitable[None]]) -> None:
        async def checked() -> None:
            store = await self._open()
            try:
                await check(store)
            finally:
                await store.close()

        run(checked())

    async def expire(self) -> int:
        assert self._raw is not None
        return await self._raw.expire_leases()
