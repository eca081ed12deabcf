"""Waiting for the agent: on watches opened before the first read, never by polling.

The agent has settled generation G when `status.generation >= G`; it has given up when
`status.failure.generation == G`. After a failed creation (or first start, if so asked) it removes the
instance itself: the failure is put first, then record and status go in one revision.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from innkeeper.errors import (
    Compacted,
    Conflict,
    GuestTimeout,
    InnkeeperError,
    NotFound,
    StoreError,
    from_dict,
)
from innkeeper.spec.instance import Failure, InstanceRecord
from innkeeper.store import keys
from innkeeper.store.codec import decode
from innkeeper.store.kv import Event, EventKind, KeyValue, Store, Watch
from innkeeper.store.view import InstanceView, StatusRecord

Predicate = Callable[[InstanceView], bool]


class Deadline:
    """The seconds left of those a user gave one verb, for the several waits it makes."""

    def __init__(self, asked_s: float) -> None:
        self.asked_s = asked_s
        self._end = asyncio.get_running_loop().time() + asked_s

    @property
    def left_s(self) -> float:
        return max(0.0, self._end - asyncio.get_running_loop().time())


Limit = float | Deadline

# How long a failed first start may take to clear up after itself before its error is passed on anyway.
CLEAN_UP_DEADLINE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Gone:
    """The instance went away at `revision`; `last` is how it looked just before."""

    revision: int
    last: InstanceView | None


async def settle(store: Store, name: str, generation: int, limit: Limit, *, uid: str = "") -> InstanceView:
    """Wait for the agent's answer to `generation`; see `Repo.settle`."""
    failure: InnkeeperError | None = None
    try:
        async with _following(store, name, limit) as states:
            async for state in states:
                if isinstance(state, Gone) or (uid and state.record.uid != uid):
                    last = state.last if isinstance(state, Gone) else None
                    raise _failure_of(last, generation) or _went_away(name)
                if state.status.generation >= generation:
                    return state
                failure = _failure_of(state, generation)
                if failure is not None:
                    if _is_cleared_up(state):
                        await _until_gone(states)
                    raise failure
    except GuestTimeout:
        # The deadline passed while a failed start was clearing up: the failure is the news.
        if failure is not None:
            raise failure from None
        raise
    raise StoreError("The store was closed")


async def settle_removed(store: Store, name: str, generation: int, deadline_s: float, *, uid: str) -> int:
    """Wait until the instance `uid` is gone; see `Repo.settle_removed`."""
    async with _following(store, name, deadline_s) as states:
        async for state in states:
            if isinstance(state, Gone):
                return state.revision
            if state.record.uid != uid:
                return state.revision
            failure = _failure_of(state, generation)
            if failure is not None:
                raise failure
    raise StoreError("The store was closed")


async def wait_for(
    store: Store, name: str, predicate: Predicate, limit: Limit, *, gone_ok: bool = False
) -> InstanceView:
    """Wait until `predicate` holds; see `Repo.wait_for`."""
    uid = ""
    async with _following(store, name, limit) as states:
        async for state in states:
            if isinstance(state, Gone) or (uid and state.record.uid != uid):
                last = state.last if isinstance(state, Gone) else None
                if last is not None and gone_ok:
                    return last
                raise _went_away(name)
            uid = state.record.uid
            if predicate(state):
                return state
    raise StoreError("The store was closed")


def _is_cleared_up(view: InstanceView) -> bool:
    """Whether the agent removes the instance because the verb that made it failed."""
    wanted = view.record.wanted
    return wanted.generation == 1 and (wanted.remove_if_start_fails or not view.status.created)


def _failure_of(view: InstanceView | None, generation: int) -> InnkeeperError | None:
    """The error that answers for `generation`, if there is one."""
    failure = view.status.failure if view else None
    if failure is None or failure.generation < generation:
        return None
    if failure.generation > generation:
        # The agent looks at the latest wish only; ours was overtaken and will never be answered.
        return Conflict(
            f"Overtaken by another command, which failed: {failure.message}",
            hint=failure.hint,
            details=failure.details,
        )
    return as_error(failure)


def as_error(failure: Failure) -> InnkeeperError:
    """The agent's failure as the error it was."""
    return from_dict(failure.model_dump(exclude={"generation"}))


def _went_away(name: str) -> NotFound:
    return NotFound(f"{name} was removed meanwhile", hint="see what there is: inn list")


async def _until_gone(states: AsyncIterator[InstanceView | Gone]) -> None:
    """So that the name is free again when the user reads why the start failed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLEAN_UP_DEADLINE_S):
            async for state in states:
                if isinstance(state, Gone):
                    return


@contextlib.asynccontextmanager
async def _following(
    store: Store, name: str, limit: Limit
) -> AsyncIterator[AsyncIterator[InstanceView | Gone]]:
    """The states of one instance, the present one first; GuestTimeout at the deadline."""
    deadline = limit if isinstance(limit, Deadline) else Deadline(limit)
    follower = _Follower(store, name)
    try:
        async with asyncio.timeout(deadline.left_s):
            async with (
                store.watch(keys.instance(name)) as records,
                store.watch(keys.status(name)) as statuses,
                contextlib.aclosing(follower.states(records, statuses)) as states,
            ):
                yield states
    except TimeoutError:
        raise _too_late(name, follower.last, deadline.asked_s) from None


def _too_late(name: str, last: InstanceView | None, asked_s: float) -> GuestTimeout:
    state = last.status.state.value if last else "unknown"
    return GuestTimeout(
        f"{name} did not get there within {asked_s:g} s; its state is {state}",
        hint=f"it goes on by itself: see inn show {name}, or inn logs {name}",
        details={"name": name, "state": state, "ready": bool(last and last.status.ready)},
    )


class _Follower:
    """Joins the events of a record and of its status into views, in an order that keeps the last
    status before the record's end: the two watches are read independently."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._keys = (keys.instance(name), keys.status(name))
        self._known: dict[str, KeyValue | None] = {}
        self.last: InstanceView | None = None

    async def states(self, records: Watch, statuses: Watch) -> AsyncGenerator[InstanceView | Gone, None]:
        for key in self._keys:
            self._known[key] = await self._store.get(key)
        yield await self._state(0)
        async with contextlib.aclosing(_merged(records, statuses)) as batches:
            async for batch in batches:
                news = [event for event in batch if self._take(event)]
                if news:
                    yield await self._state(news[-1].kv.mod_revision)

    def _take(self, event: Event) -> bool:
        """Note an event; False when it is about another key or older than what was read."""
        key = event.kv.key
        if key not in self._known:
            return False
        known = self._known[key]
        if known is not None and event.kv.mod_revision <= known.mod_revision:
            return False
        self._known[key] = event.kv if event.kind is EventKind.PUT else None
        return True

    async def _state(self, revision: int) -> InstanceView | Gone:
        record_kv, status_kv = (self._known[key] for key in self._keys)
        if record_kv is None:
            return Gone(revision, await self._just_before(revision))
        status = (decode(StatusRecord, status_kv), status_kv.mod_revision) if status_kv else None
        record = decode(InstanceRecord, record_kv)
        self.last = InstanceView.of(record, record_kv.mod_revision, status)
        return self.last

    async def _just_before(self, revision: int) -> InstanceView | None:
        """The end of the record may be seen before the status that was put first, so look it up."""
        if self.last is None or revision < 2:
            return self.last
        key = self._keys[1]
        try:
            listing = await self._store.list(key, revision=revision - 1)
        except Compacted:
            return self.last
        for kv in listing.items:
            if kv.key == key:
                pair = (decode(StatusRecord, kv), kv.mod_revision)
                return InstanceView.of(self.last.record, self.last.revision, pair)
        return self.last


async def _merged(*watches: Watch) -> AsyncGenerator[list[Event], None]:
    """The batches of several watches as they come."""
    waiting = {asyncio.ensure_future(_next(it)): it for it in map(aiter, watches)}
    try:
        while True:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                iterator = waiting.pop(task)
                waiting[asyncio.ensure_future(_next(iterator))] = iterator
                yield task.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _next(iterator: AsyncIterator[list[Event]]) -> list[Event]:
    try:
        return await anext(iterator)
    except StopAsyncIteration:
        raise StoreError("The store was closed") from None
