"""What the SQLite back-end does when its disk is full, read-only or failing, or its file is damaged."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, for `helpers`

from sqlite_stores import make, on_log, refusal, reopen, sql

from helpers import FakeClock, run, take
from innkeeper.errors import StoreCorrupt, StoreError, StoreFull
from innkeeper.store.kv import Put, absent, exists
from innkeeper.store.sqlite import SqliteStore
from innkeeper.store.sqlite_file import SCHEMA_VERSION


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


# --- the disk -----------------------------------------------------------------------------------


async def check_full_and_recovered(store: SqliteStore, free: Callable[[], Any]) -> None:
    """`store` has no room for 256 KiB more; `free` makes some."""
    lease = await store.lease_grant(60)
    await store.txn([], [Put("a", b"before", lease)])
    before = await store.list("")
    big = b"x" * (256 << 10)
    async with store.watch("") as watch:
        for durable in (True, False):
            with pytest.raises(StoreFull) as caught:
                await store.txn([exists("a")], [Put("a", b"after"), Put("big", big)], durable=durable)
            assert "space" in caught.value.message
            assert str(store._path.parent) in caught.value.hint
        assert await store.list("") == before
        assert await store.lease_keepalive(lease) == 60
        await free()
        result = await store.txn([absent("big")], [Put("big", big, lease)])
        assert (result.succeeded, result.revision) == (True, before.revision + 1)
        ((event,),) = await take(watch, 1)
        assert event.kv.key == "big"
    await store.lease_revoke(lease)
    assert [item.key for item in (await store.list("")).items] == []


def test_full_disk_by_a_page_limit(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        await sql(store, "PRAGMA max_page_count = 40")
        await check_full_and_recovered(store, lambda: sql(store, "PRAGMA max_page_count = 10000"))
        await store.close()

    run(check())
    run(reopen(path))


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB of its own."""
    where = tmp_path / "tmpfs"
    where.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", where], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


def fill(where: Path, leave: int) -> Path:
    """Use the file system up, but for `leave` bytes."""
    filler = where / "filler"
    stat = os.statvfs(where)
    with filler.open("wb", buffering=0) as file:
        file.write(b"\0" * (stat.f_bavail * stat.f_frsize - leave))
    return filler


def test_full_disk_for_real(tmpfs: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(tmpfs / "store.db")
        filler = fill(tmpfs, leave=100 << 10)

        async def free() -> None:
            filler.unlink()

        await check_full_and_recovered(store, free)
        before = await store.list("")
        await store.close()
        assert os.statvfs(tmpfs).f_bavail
        store = await SqliteStore.open(tmpfs / "store.db")
        assert await store.list("") == before
        await store.close()

    run(check())


def test_full_disk_when_making_the_file(tmpfs: Path) -> None:
    filler = fill(tmpfs, leave=0)
    error = refusal(tmpfs / "store.db")
    assert isinstance(error, StoreFull)
    filler.unlink()
    make(tmpfs / "store.db")


def test_expiry_is_tried_again_after_a_full_disk(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        clock = FakeClock()
        store = await SqliteStore.open(path, clock)
        lease = await store.lease_grant(10)
        await store.txn([], [Put("a", b"", lease)])
        # A trigger that fails stands for any write error: a deletion is too small to fill a disk.
        await sql(store, "CREATE TRIGGER stop BEFORE INSERT ON log BEGIN SELECT RAISE(FAIL, 'no'); END")
        clock.advance(10)
        with pytest.raises(StoreError):
            await store.expire_leases()
        # The thread works in order: once this is answered, the timer has tried as well.
        assert await store.get("a") is not None
        await sql(store, "DROP TRIGGER stop")
        async with store.watch("") as watch:
            clock.advance(1)
            await take(watch, 1)
        await store.close()

    run(check())
    assert len([record for record in caplog.records if "expired leases" in record.message]) == 1


def test_read_only_file_system(tmpfs: Path) -> None:
    make(tmpfs / "store.db")
    subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)
    assert "write" in refusal(tmpfs / "store.db").hint
    assert "write" in refusal(tmpfs / "new.db").hint
    subprocess.run(["mount", "-o", "remount,rw", tmpfs], check=True)
    make(tmpfs / "store.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_directory(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        refusal(path)
    finally:
        path.parent.chmod(0o700)


def test_missing_directory(tmp_path: Path) -> None:
    assert "exists" in refusal(tmp_path / "none" / "store.db").hint


def test_file_that_becomes_read_only(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        await store.txn([], [Put("a", b"1")])
        await sql(store, "PRAGMA query_only = 1")
        with pytest.raises(StoreError, match="cannot be written"):
            await store.txn([], [Put("a", b"2")])
        found = await store.get("a")
        assert found is not None
        assert found.value == b"1"
        await sql(store, "PRAGMA query_only = 0")
        assert (await store.txn([], [Put("a", b"2")])).revision == 2
        await store.close()

    run(check())


def test_an_unknown_error_is_an_error_and_not_a_lost_race(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        await sql(store, "CREATE TRIGGER stop BEFORE INSERT ON live BEGIN SELECT RAISE(ABORT, 'odd'); END")
        with pytest.raises(StoreError, match="odd"):
            await store.txn([absent("a")], [Put("a", b"")])
        assert await store.revision() == 0
        assert await sql(store, "SELECT * FROM log") == []
        await sql(store, "DROP TRIGGER stop")
        assert (await store.txn([absent("a")], [Put("a", b"")])).revision == 1
        await store.close()

    run(check())


class FailingCommit:
    """A connection whose next COMMIT reports a failed fsync, as SQLite does: undone, but in the file."""

    def __init__(self, inner: sqlite3.Connection) -> None:
        self.inner = inner
        self.armed = True
        self.statements: list[str] = []

    def execute(self, statement: str, *parameters: Any) -> Any:
        self.statements.append(statement)
        if statement == "COMMIT" and self.armed:
            self.armed = False
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC  # type: ignore[misc]
            raise error
        return self.inner.execute(statement, *parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_after_a_failed_fsync_the_log_is_emptied_before_anything_else_is_written(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        await store.txn([], [Put("a", b"1")])
        failing = await on_log(store, lambda log: FailingCommit(log._db))
        await on_log(store, lambda log: setattr(log, "_db", failing))
        with pytest.raises(StoreError, match="I/O error"):
            await store.txn([], [Put("a", b"2")])
        found = await store.get("a")
        assert found is not None
        assert found.value == b"1"
        failing.statements.clear()
        assert (await store.txn([], [Put("a", b"3")])).revision == 2
        assert failing.statements.index("PRAGMA wal_checkpoint(TRUNCATE)") < failing.statements.index(
            "COMMIT"
        )
        await store.close()

    run(check())


def test_durable_is_synced_and_not_durable_is_not(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        levels = []  # 2 is FULL, 1 NORMAL; what a commit did is what was set for it
        for durable in (True, False, False, True):
            await store.txn([], [Put("a", b"")], durable=durable)
            levels += await sql(store, "PRAGMA synchronous")
        assert levels == [(2,), (1,), (1,), (2,)]
        await store.close()

    run(check())


# --- a damaged file -----------------------------------------------------------------------------


def test_garbage(path: Path) -> None:
    garbage = os.urandom(20_000)
    path.write_bytes(garbage)
    error = refusal(path)
    assert isinstance(error, StoreCorrupt)
    assert "move" in error.hint
    assert path.read_bytes() == garbage


@pytest.mark.parametrize("keep", [0, 1, 100, 4096, 0.3, 0.7, -4096, -1])
def test_truncated(path: Path, keep: float) -> None:
    make(path, values=50, size=2000)
    size = path.stat().st_size
    kept = int(size * keep) if isinstance(keep, float) else keep % size
    os.truncate(path, kept)
    assert isinstance(refusal(path), StoreCorrupt)
    assert path.stat().st_size == kept


def test_truncated_with_writes_still_in_the_log(path: Path) -> None:
    """What a crash and a damaged disk leave together: the log is good, the file is not."""

    async def copy_alive() -> Path:
        store = await SqliteStore.open(path)
        for number in range(300):  # enough for SQLite to have moved some of it into the file
            await store.txn([], [Put(f"k/{number}", bytes(8000))], durable=False)
        copy = path.with_name("copy.db")
        for suffix in ("", "-wal"):
            copy.with_name(copy.name + suffix).write_bytes(path.with_name(path.name + suffix).read_bytes())
        await store.close()
        return copy

    copy = run(copy_alive())
    assert copy.stat().st_size > 400_000
    os.truncate(copy, 200_000)
    assert isinstance(refusal(copy), StoreCorrupt)


def test_a_page_overwritten(path: Path) -> None:
    make(path, values=50, size=2000)
    with path.open("r+b") as file:
        file.seek(5 * 4096)
        file.write(b"\xa5" * 4096)
    assert isinstance(refusal(path), StoreCorrupt)


def test_damage_that_shows_only_later(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        await store.txn([], [Put("a", b"1")])
        await store.txn([], [Put("a", b"2")])
        await sql(store, "DELETE FROM log WHERE version = 1")
        async with store.watch("", from_revision=2) as watch:
            with pytest.raises(StoreCorrupt):
                await take(watch, 1)
        await store.close()

    run(check())


def test_foreign_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE log (mine)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    error = refusal(path)
    assert isinstance(error, StoreCorrupt)
    assert "Innkeeper" in error.message
    assert path.read_bytes() == before


def test_database_lost_but_its_log_left(path: Path) -> None:
    path.with_name("store.db-wal").write_bytes(b"x" * 5000)
    error = refusal(path)
    assert isinstance(error, StoreCorrupt)
    assert "store.db-wal" in str(error)
    assert not path.exists()


def test_newer_schema(path: Path) -> None:
    make(path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (SCHEMA_VERSION + 1,))
    connection.commit()
    connection.close()
    error = refusal(path)
    assert not isinstance(error, StoreCorrupt)
    assert "newer Innkeeper" in error.message


def test_a_failed_opening_lets_go_of_the_lock(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)
    refusal(path)
    path.unlink()
    make(path)
