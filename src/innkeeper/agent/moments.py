"""Moments: instants of a VM from which its forks are started, and its snapshots written.

A moment is taken once for all siblings, by the parent's own worker, so that nothing else happens to
the parent meanwhile. It lives in memory and in RUN: after a crash of the daemon the forks that were
not started yet are given up and removed, as the failed verb they are.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from innkeeper.engine.base import LaunchPlan, Layer, Moment
from innkeeper.errors import Failed

# A parent that is being started or stopped first finishes that.
WAIT_S: Final = 60.0


@dataclass
class Taken:
    """A moment with all that a fork needs: the parent's plan, its frozen layers and its small files.
    `machine` is None for a parent that did not run: then forks boot."""

    plan: LaunchPlan | None
    machine: Moment | None
    disks: dict[str, tuple[Layer, ...]]  # frozen layers of what is copied, whole chains of the rest
    directory: Path
    parent_uid: str = ""
    pause_ms: float = 0.0
    quiesced: bool = False  # the guest's file systems were at rest
    users: set[str] = field(default_factory=set)  # forks that are not started yet, and other holders
    ready: asyncio.Event = field(default_factory=asyncio.Event)  # or `failure` says why it never will be
    failure: BaseException | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)  # nothing happens to the parent any more

    async def wait_ready(self) -> None:
        """Until forks may start from it. Raises what went wrong with it."""
        await asyncio.wait_for(self.ready.wait(), WAIT_S)
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        if self.machine is not None:
            self.machine.ram.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class Moments:
    """`kick(parent uid)` makes the parent's worker look again."""

    def __init__(self) -> None:
        self.kick: Callable[[str], None] = lambda uid: None
        self._taken: dict[str, Taken] = {}
        self._awaited: dict[str, dict[str, asyncio.Future[Taken]]] = {}  # parent uid -> token
        self._holders: dict[str, set[str]] = {}  # of moments that are not there yet
        self._quiet: set[str] = set()
        self._halted: dict[str, str] = {}  # token -> uid

    def waiting(self, parent_uid: str) -> str | None:
        """The token of a moment of this VM that somebody waits for."""
        return next(iter(self._awaited.get(parent_uid, {})), None)

    async def of(self, parent_uid: str, token: str) -> Taken:
        """The moment, prepared now if this is the first to ask: its layers are there, and once it is
        `wait_ready` its state. Its users hold it until each `release`d.

        Raises what preparing it raised, for all who wait for it; Failed when the parent's worker does
        not get to it in time.
        """
        taken = self._taken.get(token)
        if taken is not None:
            return taken
        waiting = self._awaited.setdefault(parent_uid, {})
        if token not in waiting:
            waiting[token] = asyncio.get_running_loop().create_future()
            self.kick(parent_uid)
        try:
            return await asyncio.wait_for(asyncio.shield(waiting[token]), WAIT_S)
        except TimeoutError:
            raise Failed("The parent was busy for too long", hint="try the fork again") from None

    def hold(self, token: str, holder: str, *, quiesce: bool = False, halt: str = "") -> None:
        """Before asking for it: `holder` uses the moment, though it is no fork, until `release`d. With
        `quiesce` the guest's file systems are to be at rest then; with `halt`, the parent's uid, the
        parent stands still from then on until the moment is closed."""
        self._holders.setdefault(token, set()).add(holder)
        if quiesce:
            self._quiet.add(token)
        if halt:
            self._halted[token] = halt

    def halts(self, token: str) -> bool:
        return token in self._halted

    def halted(self, uid: str) -> bool:
        """Whether this VM stands still for a moment of it."""
        return uid in self._halted.values()

    def wants_quiet(self, token: str) -> bool:
        return token in self._quiet

    def prepare(self, parent_uid: str, token: str, taken: Taken, users: set[str]) -> None:
        """Of the parent's worker: forks may be made from it, and started when it is ready."""
        taken.users = users | self._holders.pop(token, set())
        taken.parent_uid = parent_uid
        self._taken[token] = taken
        future = self._awaited.get(parent_uid, {}).pop(token, None)
        if future is not None and not future.done():
            future.set_result(taken)

    def fail(self, parent_uid: str, token: str, error: BaseException) -> None:
        """Of the parent's worker: it could not be taken; all who wait for it are told."""
        future = self._awaited.get(parent_uid, {}).pop(token, None)
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # whoever waited may be gone
        taken = self._taken.get(token)
        if taken is not None:
            taken.failure = error
            taken.ready.set()
            if not taken.users:
                self._drop(token)

    def taken_for(self, token: str) -> None:
        """Of the parent's worker, at the end. A moment that nobody wants any more is closed."""
        taken = self._taken.get(token)
        if taken is not None:
            taken.over.set()
            if not taken.users:
                self._drop(token)

    def release(self, token: str, user: str) -> None:
        """`user` runs, or was given up. The last one closes the moment; while the parent is still at it, the
        parent's worker does, at the end."""
        self._holders.get(token, set()).discard(user)
        if (halted := self._halted.pop(token, "")) != "":
            self.kick(halted)
        taken = self._taken.get(token)
        if taken is not None:
            taken.users.discard(user)
            if not taken.users and (taken.over.is_set() or taken.failure is not None):
                self._drop(token)
                self.kick(taken.parent_uid)  # it may have waited for the end of this

    def _drop(self, token: str) -> None:
        self._taken.pop(token).close()
        self._holders.pop(token, None)
        self._quiet.discard(token)

    def tokens(self) -> set[str]:
        """Of moments that are being taken, or have users: their layers are in use."""
        awaited = {token for waiting in self._awaited.values() for token in waiting}
        return awaited | set(self._taken)

    def has(self, parent_uid: str) -> bool:
        """Whether a moment of this VM has users."""
        return any(taken.parent_uid == parent_uid for taken in self._taken.values())

    def close(self) -> None:
        for taken in self._taken.values():
            taken.close()
        self._taken.clear()
