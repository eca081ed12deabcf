"""The store that fails when told to does so, and only then. (As a back-end it also runs the contract.)"""

from __future__ import annotations

import pytest

from helpers import run
from innkeeper.errors import StoreFull
from innkeeper.store.faulty import FaultyStore
from innkeeper.store.kv import Put, absent
from innkeeper.store.memory import MemoryStore


class Crash(BaseException):
    pass


def test_fail_next_txn_fails_one_and_changes_nothing() -> None:
    async def check() -> None:
        kv = FaultyStore(MemoryStore())
        kv.fail_next_txn = StoreFull("no space left")
        with pytest.raises(StoreFull):
            await kv.txn([], [Put("a", b"")])
        assert await kv.revision() == 0
        assert (await kv.txn([], [Put("a", b"")])).succeeded
        await kv.close()

    run(check())


def test_after_commit_runs_when_the_change_is_in() -> None:
    async def check() -> None:
        kv = FaultyStore(MemoryStore())

        def crash() -> None:
            raise Crash

        kv.after_commit = crash
        with pytest.raises(Crash):
            await kv.txn([], [Put("a", b"")])
        assert await kv.get("a") is not None
        assert not (await kv.txn([absent("a")], [Put("a", b"")])).succeeded  # no commit, no crash
        await kv.close()

    run(check())
