"""What only the SQLite back-end promises: its file survives, is one process's, and stays small."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, for `helpers`

from sqlite_stores import make, on_log, reopen, sql

from helpers import FakeClock, run, take
from innkeeper.errors import Compacted, NotFound, StateInUse
from innkeeper.store.kv import Delete, Put
from innkeeper.store.sqlite import SqliteStore
from innkeeper.store.sqlite_log import SqliteLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


# --- reopening ----------------------------------------------------------------------------------


def test_everything_survives_reopening(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        await store.txn([], [Put("a", b"1"), Put("b", b"1")])
        await store.txn([], [Put("a", b"2"), Delete("b")])
        await store.txn([], [Put("c", b"3")], durable=False)
        await store.compact(2)
        before, past = await store.list(""), await store.list("", revision=2)
        await store.close()

        store = await SqliteStore.open(path)
        assert await store.list("") == before
        assert await store.list("", revision=2) == past
        with pytest.raises(Compacted):
            await store.list("", revision=1)
        async with store.watch("", from_revision=2) as watch:
            assert (await store.txn([], [Put("d", b"")])).revision == 4
            batches = await take(watch, 3)
        assert [[event.kv.key for event in batch] for batch in batches] == [["a", "b"], ["c"], ["d"]]
        await store.close()

    run(check())


def test_leases_survive_with_what_was_left_of_them(path: Path) -> None:
    async def check() -> None:
        clock = FakeClock()
        store = await SqliteStore.open(path, clock)
        lease = await store.lease_grant(100)
        await store.txn([], [Put("a", b"", lease), Put("b", b"", lease), Put("c", b"")])
        clock.advance(30)
        assert await store.lease_keepalive(lease) == 100
        clock.advance(50)
        await store.close()

        # another boot: the monotonic clock starts anew, the one on the wall goes on
        clock = FakeClock(monotonic=5.0, time=clock.time() + 20)
        store = await SqliteStore.open(path, clock)
        clock.advance(29.5)
        assert await store.expire_leases() == 0
        async with store.watch("") as watch:
            clock.advance(0.5)
            (batch,) = await take(watch, 1)  # by the timer, armed at opening
        assert [event.kv.key for event in batch] == ["a", "b"]
        assert await store.lease_grant(1) != lease
        await store.close()

    run(check())


def test_a_lease_that_ran_out_meanwhile_ends_at_opening(path: Path) -> None:
    async def check() -> None:
        clock = FakeClock()
        store = await SqliteStore.open(path, clock)
        lease = await store.lease_grant(10)
        await store.txn([], [Put("a", b"", lease)])
        await store.close()

        store = await SqliteStore.open(path, FakeClock(time=clock.time() + 11))
        with pytest.raises(NotFound):
            await store.lease_keepalive(lease)
        await store.expire_leases()
        assert (await store.list("")).items == []
        await store.close()

    run(check())


def test_a_wall_clock_set_back_does_not_prolong_a_lease(path: Path) -> None:
    async def check() -> None:
        clock = FakeClock()
        store = await SqliteStore.open(path, clock)
        await store.lease_grant(10)
        await store.close()

        clock = FakeClock(time=clock.time() - 1e6)
        store = await SqliteStore.open(path, clock)
        clock.advance(10)
        await store.expire_leases()
        assert await sql(store, "SELECT * FROM lease") == []
        await store.close()

    run(check())


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    make(path)
    assert path.stat().st_mode & 0o777 == 0o600


# --- killed at any moment -----------------------------------------------------------------------

# Writes pairs that must stay equal, says what was acknowledged, compacts now and then.
WRITER = """
import asyncio, sys
from pathlib import Path
from innkeeper.store.kv import Put
from innkeeper.store.sqlite import SqliteStore

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    number = await store.revision()
    while True:
        number += 1
        value = b"%d" % number + b"." * (number * 37 % 5000)
        ops = [Put("left", value), Put(f"log/{number}", b""), Put("right", value)]
        result = await store.txn([], ops, durable=number % 3 == 0)
        assert result.revision == number
        print(number, flush=True)
        if number % 40 == 0:
            await store.compact(number - 10)

asyncio.run(main())
"""


def test_sigkill_loses_nothing_acknowledged_and_leaves_nothing_half_written(path: Path) -> None:
    async def check(acknowledged: int) -> int:
        store = await SqliteStore.open(path)
        revision = await store.revision()
        # what was being written when the kill came may be there, but no more than that
        assert acknowledged <= revision <= acknowledged + 1
        left, right = await store.get("left"), await store.get("right")
        assert (left is None) == (revision == 0)
        if left is not None and right is not None:
            assert left.value == right.value
            assert int(left.value.rstrip(b".")) == left.mod_revision == right.mod_revision == revision
        keys = {item.key for item in (await store.list("log/")).items}
        assert keys == {f"log/{number}" for number in range(1, revision + 1)}
        await store.close()
        return revision

    revision = 0
    for acknowledgements in (0, 1, 45, 83, 121):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(acknowledgements):
            revision = int(writer.stdout.readline())
        writer.kill()
        said = writer.stdout.read().splitlines()
        revision = int(said[-1]) if said else revision
        writer.stdout.close()
        writer.wait()
        revision = run(check(revision))


def test_killed_while_making_the_file(path: Path) -> None:
    # whatever a half-made file looks like, it lies beside, and is made anew
    path.with_name("store.db.new").write_bytes(b"half")
    path.with_name("store.db.new-journal").write_bytes(b"half")
    make(path)
    assert sorted(item.name for item in path.parent.iterdir()) == ["store.db", "store.db.lock"]


# --- one process at a time ----------------------------------------------------------------------


def test_a_second_opening_is_refused(path: Path) -> None:
    opening = "import asyncio, sys, pathlib; from innkeeper.store.sqlite import SqliteStore as S; "
    opening += "asyncio.run(S.open(pathlib.Path(sys.argv[1])))"

    async def check() -> None:
        store = await SqliteStore.open(path)
        with pytest.raises(StateInUse, match=f"process {os.getpid()}"):
            await SqliteStore.open(path)
        command = [sys.executable, "-c", opening, str(path)]
        other = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        assert "StateInUse" in other.stderr
        await store.txn([], [Put("a", b"")])
        await store.close()
        await reopen(path)

    run(check())


def test_a_child_does_not_inherit_the_lock(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        # close_fds=False: as careless as can be
        child = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE, close_fds=False)
        try:
            held = [os.readlink(entry) for entry in Path(f"/proc/{child.pid}/fd").iterdir()]
            assert not [name for name in held if name.startswith(str(path))]
            await store.close()
            await reopen(path)
        finally:
            child.kill()
            await child.wait()

    run(check())


def test_another_program_that_has_the_file_open(path: Path) -> None:
    make(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM log").fetchall()

    async def attempt() -> None:
        with pytest.raises(StateInUse, match="another program"):
            await SqliteStore.open(path)

    run(attempt())
    other.close()
    run(reopen(path))


# --- its thread ---------------------------------------------------------------------------------


def test_a_slow_disk_does_not_hold_up_the_event_loop(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        disk = threading.Event()
        slow = asyncio.create_task(on_log(store, lambda _log: disk.wait()))
        behind = [asyncio.create_task(store.txn([], [Put(f"{n}", b"")])) for n in range(3)]
        for _ in range(100):
            await asyncio.sleep(0)  # the loop turns
        assert not slow.done()
        disk.set()
        assert [(await task).revision for task in behind] == [1, 2, 3]
        await store.close()

    run(check())


def test_a_cancelled_transaction_that_happened_is_seen_by_watchers(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        committed, go_on = threading.Event(), threading.Event()

        def stop_after_commit(log: SqliteLog) -> None:
            append = log.append

            def appended(*args: Any, **kwargs: Any) -> None:
                append(*args, **kwargs)
                committed.set()
                go_on.wait()

            log.append = appended  # type: ignore[method-assign]

        await on_log(store, stop_after_commit)
        async with store.watch("") as watch:
            caller = asyncio.create_task(store.txn([], [Put("a", b"")]))
            await asyncio.to_thread(committed.wait)
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
            go_on.set()
            assert caller.cancelled()
            ((event,),) = await take(watch, 1)
            assert event.kv.key == "a"
        await store.close()

    run(check())


def test_closing_waits_for_what_was_asked(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        disk = threading.Event()
        slow = asyncio.create_task(on_log(store, lambda _log: disk.wait()))
        write = asyncio.create_task(store.txn([], [Put("a", b"")]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        disk.set()
        await asyncio.gather(slow, closing)
        assert (await write).succeeded
        await reopen(path)

    run(check())


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_a_cancelled_opening_lets_go_of_the_lock(path: Path, turns: int) -> None:
    async def check() -> None:
        opening = asyncio.create_task(SqliteStore.open(path))
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        while True:  # its thread may still be at it
            try:
                return await reopen(path)
            except StateInUse:
                await asyncio.sleep(0)

    run(check())


# --- compaction ---------------------------------------------------------------------------------


def test_compaction_keeps_the_file_from_growing(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        sizes = []
        for _ in range(6):
            for number in range(200):
                await store.txn([], [Put(f"k/{number % 10}", bytes(20_000))], durable=False)
            before = await store.list("")
            await store.compact(await store.revision())
            assert await store.list("") == before
            sizes += [pages for (pages,) in await sql(store, "PRAGMA page_count")]
        # 10 keys of 20 kB and 1 MiB to spare, from 4 MB written each time
        assert max(sizes) * 4096 < 2 << 20
        assert len(await sql(store, "SELECT position FROM log")) <= 20
        await store.close()
        assert path.stat().st_size < 2 << 20
        assert not path.with_name("store.db-wal").exists()

    run(check())


def test_compaction_forgets_deleted_keys_altogether(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        for number in range(50):
            await store.txn([], [Put(f"vm/{number}", b"")], durable=False)
        await store.txn([], [Delete("vm/", prefix=True)])
        result = await store.txn([], [Put("other", b"")])
        await store.compact(result.revision)
        assert await sql(store, "SELECT key FROM log") == [("other",)]
        await store.close()

    run(check())


def test_others_get_their_turn_during_compaction(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        for number in range(1500):
            await store.txn([], [Put("a", b"%d" % number)], durable=False)
        compaction = asyncio.create_task(store.compact(1500))
        turns = 0
        while not compaction.done():
            assert await store.get("a") is not None
            turns += 1
        assert turns > 4  # 1500 rows, 200 at a time
        await store.close()

    run(check())


def test_a_watcher_overtaken_by_compaction_in_mid_replay_is_told(path: Path) -> None:
    async def check() -> None:
        store = await SqliteStore.open(path)
        for number in range(1000):
            await store.txn([], [Put("a", b"%d" % number)], durable=False)
        async with store.watch("", from_revision=1) as watch:
            (batch,) = await take(watch, 1)
            assert batch[0].kv.mod_revision == 1
            await store.compact(1000)
            with pytest.raises(Compacted):
                await take(watch, 1000)
        await store.close()

    run(check())
