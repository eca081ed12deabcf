"""Looks at what busy VMs get of CPU time while they wait for each other; spec/fairness.py says what to do."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from innkeeper.agent.context import Context
from innkeeper.agent.qos.cpu import claim_of
from innkeeper.agent.sampling.files import read_whole
from innkeeper.agent.sampling.proc import parse_schedstat
from innkeeper.spec.fairness import INTERVAL_S, Use, contended, factor, step


@dataclass(frozen=True, slots=True)
class _Account:
    """CPU seconds a VM has used, and for how many each of its threads has run and waited."""

    used: float
    threads: Mapping[int, tuple[float, float]]

    def unmoved(self, before: _Account) -> Iterator[int]:
        """Threads that have not run since: what they waited is counted only when they do."""
        return (tid for tid, known in self.threads.items() if before.threads.get(tid) == known)

    def since(self, before: _Account, took_s: float, stuck: int) -> Use:
        """`stuck` of its threads have waited all the time."""
        waited = sum(wait - before.threads.get(tid, (0.0, 0.0))[1] for tid, (_, wait) in self.threads.items())
        return Use((self.used - before.used) / took_s, max(waited, 0.0) / took_s + stuck)


class Fairness:
    """Looks at VMs that are busy, again and again."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = root
        self._before: dict[str, _Account] = {}  # by uid, as of `_then`
        self._then = 0.0
        self._owed: dict[str, float] = {}
        self._contended = False

    def look(self, ctx: Context, busy: Collection[str], now: float) -> bool:
        """Set anew by what the weights of VMs are to be multiplied (`ctx.cpu_factors`); true while VMs wait
        for each other. Of fewer than two that are busy, or were and wait, nothing is read."""
        took = now - self._then
        if took < INTERVAL_S / 2:
            return self._contended
        before, self._then = self._before, now
        watched = {*busy, *self._owed}  # who is kept from running does not seem busy
        accounts = {uid: self._account(ctx, uid) for uid in watched} if len(watched) > 1 else {}
        self._before = {uid: account for uid, account in accounts.items() if account is not None}
        uses = {
            uid: account.since(before[uid], took, self._stuck(account.unmoved(before[uid])))
            for uid, account in self._before.items()
            if uid in before
        }
        self._contended = contended(uses.values())
        claims = {one.uid: claim_of(one.spec) for one in ctx.records.values() if one.uid in uses}
        owed = step(self._owed, uses, claims, took) if self._contended else {}
        self._owed = {uid: seconds for uid, seconds in owed.items() if uid in busy or uses[uid].is_starved}
        ctx.cpu_factors = {uid: factor(seconds, took) for uid, seconds in self._owed.items()}
        return self._contended

    def _account(self, ctx: Context, uid: str) -> _Account | None:
        running, group = ctx.running.get(uid), ctx.cgroups.get(uid)
        used = group.cpu_s() if group else None
        if running is None or used is None:
            return None
        return _Account(used, dict(self._threads(running.machine.pids)))

    def _threads(self, pids: Iterable[int]) -> Iterator[tuple[int, tuple[float, float]]]:
        for pid in pids:
            with suppress(OSError):  # it ends
                for tid in os.listdir(self._root / str(pid) / "task"):
                    with suppress(OSError):
                        told = parse_schedstat(read_whole(f"{self._root}/{pid}/task/{tid}/schedstat"))
                        if told is not None:
                            yield int(tid), (told.run_ns / 1e9, (told.wait_ns or 0) / 1e9)

    def _stuck(self, tids: Iterable[int]) -> int:
        """How many of these could run (proc_pid_stat(5), state R)."""
        count = 0
        for tid in tids:
            with suppress(OSError):
                count += read_whole(f"{self._root}/{tid}/stat").rpartition(b") ")[2].startswith(b"R")
        return count
