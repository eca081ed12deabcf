"""The host's own record after its lease ran out: a machine that was suspended, or stood still."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from helpers import run
from innkeeper.clock import SystemClock
from innkeeper.daemon.host import HeldLease, LocalHost, write_record
from innkeeper.errors import NotFound
from innkeeper.store.repo import Repo


class Records:
    """A store that has forgotten lease 1."""

    def __init__(self) -> None:
        self.store = self
        self.written: list[tuple[str, int]] = []

    async def lease_grant(self, ttl_s: float) -> int:
        return 2

    async def put_host(self, record: Any, *, lease: int) -> None:
        if lease != 2:
            raise NotFound(f"lease {lease} does not exist or has run out")
        self.written.append((record, lease))


def test_a_lease_that_ran_out_is_granted_anew_for_whoever_writes() -> None:
    records, lease = Records(), HeldLease(1)
    host = cast(LocalHost, SimpleNamespace(record=lambda now: "the host"))
    for _ in range(2):
        run(write_record(host, cast(Repo, records), SystemClock(), lease))
    assert records.written == [("the host", 2)] * 2 and lease.id == 2
