"""The store's file: its lock, its format, how it is made, opened and checked. Synchronous.

Raises sqlite3.Error and OSError as they come; sqlite.py translates them.

On disk: `NAME` (the database), `NAME-wal` (SQLite's write-ahead log), `NAME.lock` (ours).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from innkeeper.errors import StateInUse, StoreCorrupt, StoreError

APPLICATION_ID: Final = 0x496E6E6B  # "Innk", in the database header so that `file` can tell
SCHEMA_VERSION: Final = 1

BUSY_TIMEOUT_S: Final = 0.25  # nobody else should have the file; somebody who looked at it may just leave
CACHE_KIB: Final = 8192  # holds what a list of some thousand keys reads
WAL_LIMIT_BYTES: Final = 16 << 20  # after a burst, cut NAME-wal back to this; four times its normal size

# log: append-only, one row per change. position = revision << SUB_BITS | place in the revision, so
#   that the order of events is the order of the rows.
# live: the newest row of each key that is not deleted; saves `list` from wading through history.
# lease.expires_at is wall-clock time: the only one that means anything after a reboot.
_SCHEMA: Final = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA application_id = {APPLICATION_ID};
BEGIN;
CREATE TABLE log (
    position INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    create_revision INTEGER NOT NULL,
    version INTEGER NOT NULL,
    lease INTEGER NOT NULL,
    deleted INTEGER NOT NULL
);
CREATE UNIQUE INDEX log_key ON log (key, position);
CREATE TABLE live (key TEXT PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE lease (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_s REAL NOT NULL, expires_at REAL NOT NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('schema', {SCHEMA_VERSION}), ('floor', 0);
COMMIT;
"""


def lock(path: Path) -> int:
    """Take the store for this process until the descriptor returned is closed.

    The descriptor is close-on-exec (as all Python makes), so no VM we start keeps the lock. Raises
    StateInUse when somebody else has it.
    """
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise StateInUse(
            f"{path} is in use by process {holder or '(unknown)'}",
            hint="stop the other daemon, or use another state directory",
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def connect(path: Path) -> sqlite3.Connection:
    """Open the database, making it if there is none; the lock is held already.

    Raises StoreCorrupt for a file that is damaged or not ours, StoreError for one of a newer schema.
    """
    wal = path.with_name(path.name + "-wal")
    whole = not (wal.exists() and wal.stat().st_size)  # nothing is waiting to be moved into the file
    if not path.exists():
        # SQLite would replay it into a new file: somebody removed or lost the database itself.
        if not whole:
            raise StoreCorrupt(
                f"{path} is missing, but its log {wal.name} is there",
                hint=f"restore {path.name} from a backup, or remove {wal} to start empty",
            )
        _create(path)
    elif path.stat().st_size == 0:
        raise _corrupt(path, "is empty")
    connection = _open(path)
    try:
        # From now on no other program can touch the file, and no shared memory is needed (which on
        # a full tmpfs may kill us with SIGBUS).
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        _check_format(connection, path)
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":  # SQLite does not call this an error; what `durable` means depends on it
            raise StoreError(f"{path} cannot be put in write-ahead mode", hint="use a local file system")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        if whole and path.stat().st_size % page_size:  # SQLite fills an incomplete last page with zeros
            raise _corrupt(path, "is damaged: its last page is incomplete")
        # About 0.5 ms per MiB, and the only way to notice missing pages before it is too late.
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _corrupt(path, f"is damaged: {verdict}")
    except BaseException:
        connection.close()
        raise
    return connection


def _open(path: Path) -> sqlite3.Connection:
    # absolute(): a name that starts with "file:" would be taken for a URI.
    return sqlite3.connect(str(path.absolute()), timeout=BUSY_TIMEOUT_S, isolation_level=None)


def _create(path: Path) -> None:
    """Make the file beside its place and move it there, so that a half-made one is never found."""
    making = path.with_name(path.name + ".new")
    for leftover in (making, making.with_name(making.name + "-journal")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        connection = _open(making)
        try:
            connection.executescript(_SCHEMA)
        finally:
            connection.close()
        os.rename(making, path)
    except BaseException:
        with suppress(OSError):
            making.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise _corrupt(path, "is a SQLite database, but not one of Innkeeper's")
    row = connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    if row is None:
        raise _corrupt(path, "does not say which schema it has")
    if row[0] > SCHEMA_VERSION:
        raise StoreError(
            f"a newer Innkeeper wrote {path} (schema {row[0]}, this one knows {SCHEMA_VERSION})",
            hint="use that version of Innkeeper, or restore a backup from before the upgrade",
        )
    if row[0] != SCHEMA_VERSION:
        raise _corrupt(path, f"claims schema {row[0]}, which never existed")


def _corrupt(path: Path, what: str) -> StoreCorrupt:
    return StoreCorrupt(f"{path} {what}", hint=corrupt_hint(path))


def corrupt_hint(path: Path) -> str:
    return f"move {path} and {path.name}-wal away and restore a backup, or start empty"
