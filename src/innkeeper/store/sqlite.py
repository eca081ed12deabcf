"""The store in one SQLite file: what a single machine uses.

All SQLite calls run, in order, in one thread of the store's own, so that a slow disk holds up the
store's callers and nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from innkeeper.clock import Clock, SystemClock
from innkeeper.errors import StateInUse, StoreCorrupt, StoreError, StoreFull
from innkeeper.store.core import Core, LogStore
from innkeeper.store.kv import Event
from innkeeper.store.sqlite_file import corrupt_hint
from innkeeper.store.sqlite_log import SqliteLog

T = TypeVar("T")

_SYSTEM_CLOCK: Final = SystemClock()


class SqliteStore(LogStore):
    """A `Store` in the file `path`; made by `open`."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Use `open`."""
        super().__init__(clock)
        self._path = path
        self._clock = clock
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._loop = asyncio.get_running_loop()
        self._core: Core | None = None  # the worker's, as is all below it

    @classmethod
    async def open(cls, path: Path, clock: Clock = _SYSTEM_CLOCK) -> SqliteStore:
        """Open the store, making the file (mode 0600) if there is none; its directory must exist.

        `clock` says when leases run out. Raises StateInUse when a process holds it already,
        StoreCorrupt for a damaged or foreign file, StoreFull, and StoreError for the rest, e.g. a
        read-only file system or a file that a newer Innkeeper wrote.
        """
        store = cls(path, clock)
        try:
            store._hub.revision, deadline = await store._run(store._open)
        except BaseException:
            # Cancelled perhaps, with the file already open: the worker lets go of it then.
            store._closed = True
            store._worker.submit(store._release)
            store._worker.shutdown(wait=False)
            raise
        if deadline is not None:
            store._timer.arm(deadline)
        return store

    def _open(self) -> tuple[int, float | None]:
        log = SqliteLog(self._path, self._clock)
        try:
            self._core = Core(log, self._clock, self._publish)
        except BaseException:
            log.close()
            raise
        return log.revision, self._core.next_deadline()

    def _publish(self, revision: int, events: list[Event]) -> None:
        # Before the caller of the transaction hears of it: the loop keeps the order of these calls.
        self._loop.call_soon_threadsafe(self._hub.publish, revision, events)

    async def _call(self, job: Callable[[Core], T]) -> T:
        self._require_open()

        def on_core() -> T:
            assert self._core is not None  # `open` has returned
            return job(self._core)

        return await self._run(on_core)

    async def _run(self, job: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._worker, self._translated, job)

    def _translated(self, job: Callable[[], T]) -> T:
        """The one place where foreign exceptions become ours."""
        try:
            return job()
        except sqlite3.Error as error:
            raise translate_sqlite(error, self._path) from error
        except OSError as error:
            raise translate_os(error, self._path) from error

    async def _close(self) -> None:
        # Shielded: a cancelled close must not leave the file locked.
        try:
            await asyncio.shield(self._run(self._release))
        finally:
            self._worker.shutdown(wait=False)

    def _release(self) -> None:
        core, self._core = self._core, None
        if core is not None:
            core.log.close()


def translate_sqlite(error: sqlite3.Error, path: Path) -> StoreError | StateInUse:
    """What an exception of SQLite means. Codes: https://www.sqlite.org/rescode.html"""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code; 0: of the Python module
    if code == sqlite3.SQLITE_FULL:
        return _full(path)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreCorrupt(f"{path} is damaged: {error}", hint=corrupt_hint(path))
    if code == sqlite3.SQLITE_BUSY:
        return StateInUse(f"another program has {path} open", hint="close it, then try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreError(f"{path} cannot be written: {error}", hint=_writable_hint(path))
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StoreError(f"{path}: {error} ({name})", hint="look at the kernel log for trouble with the disk")


def translate_os(error: OSError, path: Path) -> StoreError:
    """What an exception of the operating system means, of the lock file or when making the database."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(path)
    return StoreError(f"{path} cannot be opened: {error.strerror or error}", hint=_writable_hint(path))


def _full(path: Path) -> StoreFull:
    return StoreFull(f"no space left for {path}", hint=f"free some space on the file system of {path.parent}")


def _writable_hint(path: Path) -> str:
    return f"check that {path.parent} exists and this user may write there"
