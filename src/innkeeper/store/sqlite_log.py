"""The store's rows in SQLite: one append-only log table, after kine. Synchronous, one thread."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Final

from innkeeper.clock import Clock
from innkeeper.errors import StoreCorrupt, StoreError
from innkeeper.store import sqlite_file
from innkeeper.store.kv import NO_LEASE, Event, EventKind, KeyValue
from innkeeper.store.semantics import SUB_BITS, prefix_end, tombstone

# One step of compaction or replay keeps the thread for some milliseconds at most.
FORGET_ROWS: Final = 200
SHRINK_PAGES: Final = 256
HISTORY_REVISIONS: Final = 512
HISTORY_BYTES: Final = 4 << 20
# Free pages to keep for what is written next (1 MiB); vacuuming them would only be work.
KEEP_FREE_PAGES: Final = 256

_COLUMNS: Final = "log.position, log.key, log.value, log.create_revision, log.version, log.lease"
_LIVE: Final = f"SELECT {_COLUMNS} FROM live CROSS JOIN log ON log.position = live.position"
_GET: Final = f"{_LIVE} WHERE live.key = ?"
_LEASED: Final = (
    "SELECT live.key, log.lease FROM live CROSS JOIN log ON log.position = live.position WHERE log.lease"
)
_SCAN: Final = f"{_LIVE} WHERE live.key >= ?1 AND (?2 IS NULL OR live.key < ?2) ORDER BY live.key"
_SCAN_AT: Final = f"""
    SELECT {_COLUMNS} FROM (
        SELECT key, max(position) AS position FROM log
        WHERE key >= ?1 AND (?2 IS NULL OR key < ?2) AND position < ?3 GROUP BY key
    ) AS newest CROSS JOIN log ON log.position = newest.position
    WHERE NOT log.deleted ORDER BY newest.key"""
_HISTORY: Final = f"""
    SELECT {_COLUMNS}, log.deleted FROM log
    WHERE position >= ?3 AND position < ?4 AND key >= ?1 AND (?2 IS NULL OR key < ?2)
    ORDER BY position"""
_BEFORE: Final = f"SELECT {_COLUMNS} FROM log WHERE key = ? AND position < ? ORDER BY position DESC LIMIT 1"
# Kept below the floor is only what the floor's revision replaced or left alone: all that later
# events can name as `previous`.
_FORGET: Final = """
    DELETE FROM log WHERE position > ?1 AND position <= ?2 AND (deleted OR EXISTS (
        SELECT 1 FROM log AS newer
        WHERE newer.key = log.key AND newer.position > log.position AND newer.position < ?3))"""

_Row = tuple[int, str, bytes, int, int, int]


class SqliteLog:
    """Rows of one file, held by this process alone. See `innkeeper.store.core.Log`."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Open or make the file; raises as `sqlite_file.lock` and `sqlite_file.connect` do."""
        self._path = path
        self._clock = clock
        with ExitStack() as undo:
            self._lock = sqlite_file.lock(path)
            undo.callback(os.close, self._lock)
            self._db = sqlite_file.connect(path)
            undo.callback(self._db.close)
            self.revision = (self._number("SELECT max(position) FROM log") or 0) >> SUB_BITS
            self.floor = self._number("SELECT value FROM meta WHERE name = 'floor'")
            undo.pop_all()
        self._synced = True  # PRAGMA synchronous is FULL
        self._in_doubt = False  # a failed commit may have left frames in the write-ahead log

    def get(self, key: str) -> KeyValue | None:
        row = self._db.execute(_GET, (key,)).fetchone()
        return _key_value(row) if row else None

    def scan(self, prefix: str) -> list[KeyValue]:
        return [_key_value(row) for row in self._db.execute(_SCAN, (prefix, prefix_end(prefix)))]

    def scan_at(self, prefix: str, revision: int) -> list[KeyValue]:
        bounds = (prefix, prefix_end(prefix), (revision + 1) << SUB_BITS)
        return [_key_value(row) for row in self._db.execute(_SCAN_AT, bounds)]

    def history(self, prefix: str, first: int, last: int) -> tuple[list[list[Event]], int]:
        last = min(last, first + HISTORY_REVISIONS - 1)
        bounds = (prefix, prefix_end(prefix), first << SUB_BITS, (last + 1) << SUB_BITS)
        batches: list[list[Event]] = []
        size = 0
        rows = self._db.execute(_HISTORY, bounds)
        for revision, group in groupby(rows, key=lambda row: int(row[0]) >> SUB_BITS):
            batch = [self._event(row[:6], deleted=row[6]) for row in group]
            batches.append(batch)
            size += sum(len(event.kv.value) for event in batch)
            if size >= HISTORY_BYTES:
                rows.close()
                return batches, revision
        return batches, last

    def append(self, events: Sequence[Event], *, durable: bool, ended_lease: int = NO_LEASE) -> None:
        base = (self.revision + 1) << SUB_BITS
        placed = [(base + sub, event.kv, event.kind is EventKind.DELETE) for sub, event in enumerate(events)]
        with self._transaction(durable):
            self._db.executemany(
                "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (at, kv.key, kv.value, kv.create_revision, kv.version, kv.lease, gone)
                    for at, kv, gone in placed
                ],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO live VALUES (?, ?)",
                [(kv.key, at) for at, kv, gone in placed if not gone],
            )
            self._db.executemany(
                "DELETE FROM live WHERE key = ?", [(kv.key,) for _, kv, gone in placed if gone]
            )
            if ended_lease != NO_LEASE:
                self._db.execute("DELETE FROM lease WHERE id = ?", (ended_lease,))
        if events:
            self.revision += 1

    def leases(self) -> list[tuple[int, float, float]]:
        # The clock on the wall may have been set meanwhile: never more than the whole ttl.
        now = self._clock.time()
        rows = self._db.execute("SELECT id, ttl_s, expires_at FROM lease ORDER BY id")
        return [(lease, ttl_s, min(max(expires_at - now, 0.0), ttl_s)) for lease, ttl_s, expires_at in rows]

    def leased(self) -> list[tuple[str, int]]:
        return self._db.execute(_LEASED).fetchall()

    def add_lease(self, ttl_s: float) -> int:
        with self._transaction(durable=True):
            row = (ttl_s, self._clock.time() + ttl_s)
            cursor = self._db.execute("INSERT INTO lease (ttl_s, expires_at) VALUES (?, ?)", row)
        return int(cursor.lastrowid or NO_LEASE)

    def renew_lease(self, lease: int, ttl_s: float) -> None:
        # Not durable: a power cut that loses this also ends whoever kept the lease alive.
        with self._transaction(durable=False):
            row = (self._clock.time() + ttl_s, lease)
            self._db.execute("UPDATE lease SET expires_at = ? WHERE id = ?", row)

    def raise_floor(self, revision: int) -> None:
        with self._transaction(durable=False):
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'floor'", (revision,))
        self.floor = revision

    def forget(self, after: int) -> int | None:
        # Upwards, so that a deletion is never forgotten before what it deleted.
        end = self.floor << SUB_BITS
        upto = self._number(
            "SELECT max(position) FROM (SELECT position FROM log WHERE position > ? AND position < ?"
            " ORDER BY position LIMIT ?)",
            (after, end, FORGET_ROWS),
        )
        if not upto:
            return None
        with self._transaction(durable=False):
            self._db.execute(_FORGET, (after, upto, end))
        return upto

    def shrink(self) -> bool:
        spare = self._number("PRAGMA freelist_count") - KEEP_FREE_PAGES
        if spare <= 0:
            return False
        with self._transaction(durable=False):
            # fetchall: each step of this statement frees one page.
            self._db.execute(f"PRAGMA incremental_vacuum({min(spare, SHRINK_PAGES)})").fetchall()
        return True

    def close(self) -> None:
        try:
            self._db.close()
        finally:
            os.close(self._lock)

    def _number(self, sql: str, parameters: tuple[int, ...] = ()) -> int:
        row = self._db.execute(sql, parameters).fetchone()
        if row is None:
            raise self._inconsistent("an entry it always has is missing")
        return int(row[0] or 0)

    def _event(self, row: _Row, *, deleted: bool) -> Event:
        position, key, *_, version, _lease = row
        previous = None
        if deleted or version > 1:
            before = self._db.execute(_BEFORE, (key, position)).fetchone()
            if before is None:
                raise self._inconsistent(
                    f"the value of {key!r} before revision {position >> SUB_BITS} is missing"
                )
            previous = _key_value(before)
        if deleted:
            return Event(EventKind.DELETE, tombstone(key, position >> SUB_BITS), previous)
        return Event(EventKind.PUT, _key_value(row), previous)

    @contextmanager
    def _transaction(self, durable: bool) -> Iterator[None]:
        """Wholly or not at all. Not durable: no fsync now; the next durable commit covers this one too,
        since it syncs the whole write-ahead log (NORMAL, not OFF, so that checkpoints still sync)."""
        if self._in_doubt:
            self._drop_uncommitted()
        if durable != self._synced:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._synced = durable
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
                self._in_doubt = True
            raise

    def _drop_uncommitted(self) -> None:
        # A commit whose fsync failed is undone for us, but its frames are complete in the file and a
        # restart would find them. A checkpoint empties the file; until that works, nothing is written.
        busy, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreError(f"the log of {self._path} cannot be emptied after a failed write")
        self._in_doubt = False

    def _inconsistent(self, what: str) -> StoreCorrupt:
        return StoreCorrupt(f"{self._path}: {what}", hint=sqlite_file.corrupt_hint(self._path))


def _key_value(row: _Row) -> KeyValue:
    position, key, value, create_revision, version, lease = row
    return KeyValue(key, value, create_revision, position >> SUB_BITS, version, lease)
