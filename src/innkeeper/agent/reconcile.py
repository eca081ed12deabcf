"""The agent's loop: for each instance compare wanted with observed and take the next step.

One worker task per instance that has something to do, so that a hung guest holds up nobody else; a
worker that finds its instance settled ends. What is wanted comes from a watch on the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from innkeeper.agent.context import Context, Running
from innkeeper.agent.ops import power
from innkeeper.agent.ops.change import change
from innkeeper.agent.ops.create import create
from innkeeper.agent.ops.fork import freeze, promotable, promote
from innkeeper.agent.ops.remove import discard, forget
from innkeeper.agent.ops.restore import revert
from innkeeper.agent.ops.start import start
from innkeeper.agent.ops.template import make_template, wake
from innkeeper.agent.plan import Seen, Step, next_step, obsolete, restart_delay_s
from innkeeper.agent.retries import Retries
from innkeeper.agent.watching import HEALTH_INTERVAL_S, Watcher
from innkeeper.drivers.storage.files import failure_of, is_full
from innkeeper.engine.base import Machine
from innkeeper.errors import Compacted, InnkeeperError, StoreCorrupt, StoreError
from innkeeper.spec.instance import Failure, InstanceRecord, InstanceStatus, State
from innkeeper.store import keys
from innkeeper.store.codec import decode
from innkeeper.store.kv import Event, EventKind, KeyValue

log = logging.getLogger("innkeeper.agent")

Operation = Callable[[Context, InstanceRecord], Awaitable[None]]
_OPERATIONS: Final[dict[Step, Operation]] = {
    Step.CREATE: create,
    Step.START: start,
    Step.PAUSE: power.pause,
    Step.RESUME: power.resume,
    Step.STOP: power.stop,
    Step.KILL: power.kill,
    Step.CHANGE: change,
    Step.FREEZE: freeze,
    Step.PROMOTE: promote,
    Step.TEMPLATE: make_template,
    Step.WAKE: wake,
    Step.REVERT: revert,
    Step.DISCARD: discard,
    Step.FORGET: forget,
}
_OF_RUNNING: Final = frozenset(
    {Step.PAUSE, Step.RESUME, Step.STOP, Step.KILL, Step.CHANGE, Step.PROMOTE, Step.TEMPLATE, Step.WAKE}
)


class Reconciler:
    """`load` the present state (after recovery), then `run` until cancelled, then `close`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._records = ctx.records
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._watchers: dict[str, Watcher] = {}
        self._revision = 0
        self._retries = Retries(self.kick)
        ctx.on_launched, ctx.on_replaced = self._on_launched, self._on_replaced
        ctx.moments.kick = self._kick_uid
        ctx.busy = self._workers.__contains__

    async def load(self, records: list[InstanceRecord], revision: int) -> None:
        """Begin with these records, as of `revision`; adopted VMs are in the context already."""
        self._revision = revision
        for record in records:
            self._records[record.name] = record
            self._tell_pool(record)
            running = self._ctx.running.get(record.uid)
            if running is not None:
                self._on_launched(record, running)
        for record in records:
            self.kick(record.name)

    async def run(self) -> None:
        """Follow the store for ever; falls back to reading everything when history is gone."""
        health = asyncio.create_task(self._watch_health())
        try:
            while True:
                try:
                    await self._follow()
                except Compacted:
                    await self._reload()
                except StoreError as error:
                    log.error("following the store failed: %s", error)
                    await self._ctx.clock.sleep(1.0)
                    await self._reload()
        finally:
            health.cancel()

    async def close(self) -> None:
        """Stop working; every VM runs on."""
        self._retries.close()
        for worker in list(self._workers.values()):
            worker.cancel()
        await asyncio.gather(*self._workers.values(), return_exceptions=True)
        for watcher in list(self._watchers.values()):
            await watcher.close()

    def kick(self, name: str) -> None:
        """Something changed for `name`: look again."""
        event = self._changed.setdefault(name, asyncio.Event())
        event.set()
        if name not in self._workers:
            task = asyncio.create_task(self._work(name, event))
            self._workers[name] = task
            task.add_done_callback(lambda done: self._worker_done(name, done))

    def _kick_uid(self, uid: str) -> None:
        for record in self._records.values():
            if record.uid == uid:
                self.kick(record.name)
                return

    def _worker_done(self, name: str, task: asyncio.Task[None]) -> None:
        del self._workers[name]
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, StoreError):
            self._retries.failed(name, error)
            return
        self._retries.worked(name)
        if error is not None:
            log.error("working on %s failed", name, exc_info=error)
        elif self._changed[name].is_set():
            self.kick(name)
        elif name not in self._records:
            del self._changed[name]

    # -- what is wanted ----------------------------------------------------------------------------

    async def _follow(self) -> None:
        watching = self._ctx.repo.store.watch(keys.INSTANCES, from_revision=self._revision + 1)
        async with watching as watch:
            async for batch in watch:
                for event in batch:
                    self._learn(event)

    def _learn(self, event: Event) -> None:
        name = keys.name_of(event.kv.key)
        self._revision = max(self._revision, event.kv.mod_revision)
        if event.kind is EventKind.DELETE:
            self._records.pop(name, None)
        else:
            self._remember(event.kv)
        self.kick(name)

    def _remember(self, kv: KeyValue) -> None:
        """A damaged record is left alone, with the VM it may have: the API shows it as damaged."""
        try:
            record = decode(InstanceRecord, kv)
        except StoreCorrupt as error:
            log.error("%s", error)
            return
        self._records[record.name] = record
        self._tell_pool(record)

    async def _reload(self) -> None:
        listing = await self._ctx.repo.store.list(keys.INSTANCES)
        self._records.clear()
        for kv in listing.items:
            self._remember(kv)
        self._revision = listing.revision
        for name in list(self._records):
            self.kick(name)

    # -- one instance ------------------------------------------------------------------------------

    async def _work(self, name: str, changed: asyncio.Event) -> None:
        while True:
            changed.clear()
            record = self._records.get(name)
            if record is None:
                return
            if record.uid in self._ctx.unsaved:
                await self._ctx.publish(record)
            seen = self._seen(record)
            step = next_step(record, seen)
            if step is None or step is Step.PROMOTE:
                await self._settle(record, seen)  # what was asked for is there; the rest is foresight
            if step is None:
                if not changed.is_set():
                    return
            elif not await self._take(step, record, changed):
                return

    def _seen(self, record: InstanceRecord) -> Seen:
        running = self._ctx.running.get(record.uid)
        status = self._ctx.statuses.get(record.uid, InstanceStatus())
        return Seen(
            files=self._ctx.paths.instance(record.uid).directory.exists(),
            epoch=running.machine.epoch if running else None,
            paused=status.state is State.PAUSED,
            status=status,
            fork_waits=self._ctx.moments.waiting(record.uid) is not None,
            promotable=running is not None and promotable(self._ctx, record, running),
            held=self._ctx.moments.halted(record.uid),
        )

    async def _settle(self, record: InstanceRecord, seen: Seen) -> None:
        status = seen.status
        if status.failure and status.failure.generation == record.wanted.generation:
            return
        if status.generation < record.wanted.generation:
            at_rest: dict[str, Any] = {"state": State.STOPPED} if seen.epoch is None else {}
            restarts = status.restarts if record.wanted.generation == status.generation else 0
            await self._ctx.publish(
                record, generation=record.wanted.generation, failure=None, restarts=restarts, **at_rest
            )

    async def _take(self, step: Step, record: InstanceRecord, changed: asyncio.Event) -> bool:
        """Run one step, giving it up when it becomes obsolete. False: leave the instance alone."""
        work = asyncio.ensure_future(self._operation(step, record))
        try:
            while not work.done():
                news = asyncio.ensure_future(changed.wait())
                await asyncio.wait({work, news}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                if changed.is_set() and not work.done():
                    changed.clear()
                    latest = self._records.get(record.name)
                    gone = latest is None and step is not Step.FORGET  # whose own doing it is
                    if gone or (latest and obsolete(step, record.wanted, latest.wanted)):
                        work.cancel()
                        await asyncio.wait({work})
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        if work.cancelled():
            return True
        error = work.exception()
        if error is None:
            latest = self._records.get(record.name)  # of one forgotten: not told of yet, or another's already
            return step is not Step.FORGET or (latest is not None and latest.uid != record.uid)
        await self._fail(step, record, error)
        return step not in (Step.KILL, Step.DISCARD, Step.FORGET)  # tried again with the next verb or start

    async def _operation(self, step: Step, record: InstanceRecord) -> None:
        if step is Step.RESTART:
            status = self._ctx.statuses[record.uid]
            await self._ctx.clock.sleep(restart_delay_s(status.restarts))
            await start(self._ctx, record)
            await self._ctx.publish(record, restarts=status.restarts + 1)
            return
        if step in _OF_RUNNING and record.uid not in self._ctx.running:
            return  # it ended between the look and the step: look again
        await _OPERATIONS[step](self._ctx, record)

    async def _fail(self, step: Step, record: InstanceRecord, error: BaseException) -> None:
        if isinstance(error, OSError) and is_full(error):
            error = failure_of(error, f"{step.value} of {record.name} failed")
        if isinstance(error, InnkeeperError):
            said = error.to_dict()
        else:
            log.error("%s of %s failed", step.value, record.name, exc_info=error)
            said = {
                "code": "bug",
                "message": f"{step.value} failed: {error!r}",
                "hint": "see the daemon's log",
            }
        failure = Failure(generation=record.wanted.generation, **said)
        log.warning("%s of %s: %s", step.value, record.name, failure.message)
        if step in (Step.FREEZE, Step.PROMOTE):
            return  # who waits was told; the VM itself is as before
        if isinstance(error, StoreError) and step in _OF_RUNNING:
            raise error  # the VM did what was asked; it is looked at again when there is room
        changes: dict[str, Any] = {}
        if record.uid not in self._ctx.running:
            status = self._ctx.statuses.get(record.uid)
            changes["state"] = State.STOPPED if status and status.created else State.PENDING
        await self._ctx.publish(record, durable=True, failure=failure, **changes)
        if record.uid in self._watchers:
            await self._watchers[record.uid].check()  # one that did not answer shows as hung at once

    # -- running VMs -------------------------------------------------------------------------------

    def _tell_pool(self, record: InstanceRecord) -> None:
        if record.wanted.template is not None:
            self._ctx.spares.changed.set()

    def _on_launched(self, record: InstanceRecord, running: Running) -> None:
        self._watchers[record.uid] = Watcher(self._ctx, record, running, self._on_end)

    async def _on_replaced(self, record: InstanceRecord, running: Running, machine: Machine) -> None:
        """Another process is the VM now: follow that one; consoles and guest commands go on."""
        watcher = self._watchers.pop(record.uid, None)
        if watcher is not None:
            await watcher.let_go()
        running.machine = machine
        self._on_launched(record, running)

    def _on_end(self, record: InstanceRecord) -> None:
        self._watchers.pop(record.uid, None)
        self._tell_pool(record)
        self.kick(record.name)

    async def _watch_health(self) -> None:
        """A VM that hangs sends no event: ask each now and then, all at once."""
        while True:
            await self._ctx.clock.sleep(HEALTH_INTERVAL_S)
            for uid in list(self._ctx.unsaved):
                self._kick_uid(uid)
            checks = [watcher.check() for watcher in list(self._watchers.values())]
            with contextlib.suppress(InnkeeperError):
                await asyncio.gather(*checks)
