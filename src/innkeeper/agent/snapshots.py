"""The agent's loop for snapshots: takes those that are asked for, removes those that are to go.

One task for each, beside the workers of the instances; the moment itself is taken by the instance's own
worker. A snapshot that a killed daemon left half is undone: the moment it was asked for has passed.
"""

from __future__ import annotations

import asyncio
import logging
import shutil

from innkeeper.agent import layers
from innkeeper.agent.context import Context
from innkeeper.agent.ops.snapshot import remove, take
from innkeeper.agent.quiesce import thaw
from innkeeper.errors import Compacted, Failed, InnkeeperError, StoreCorrupt, StoreError
from innkeeper.spec.snapshot import SnapshotRecord, SnapshotState
from innkeeper.store import keys
from innkeeper.store.codec import decode
from innkeeper.store.kv import Event, EventKind, KeyValue

log = logging.getLogger("innkeeper.agent")


class SnapshotKeeper:
    """`load` (after recovery), then `run` until cancelled, then `close`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._known: dict[str, SnapshotRecord] = {}  # by key
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by id
        self._revision = 0

    async def load(self) -> None:
        """Undo what an earlier daemon left half, go on with what it was removing."""
        for record in await self._read():
            if record.state is SnapshotState.TAKING:
                self._begin(record, self._undo(record))
            else:
                self._look(record)

    async def run(self) -> None:
        while True:
            try:
                watching = self._ctx.repo.store.watch(keys.SNAPSHOTS, from_revision=self._revision + 1)
                async with watching as watch:
                    async for batch in watch:
                        for event in batch:
                            self._learn(event)
            except (Compacted, StoreError) as error:
                log.warning("following the snapshots failed: %s", error)
                await self._ctx.clock.sleep(1.0)
                for record in await self._read():
                    self._look(record)

    async def close(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _read(self) -> list[SnapshotRecord]:
        listing = await self._ctx.repo.store.list(keys.SNAPSHOTS)
        self._revision = listing.revision
        found = [(kv.key, record) for kv in listing.items if (record := _readable(kv))]
        self._known = {key: record for key, record in found if record.host == self._ctx.host.name}
        return list(self._known.values())

    def _learn(self, event: Event) -> None:
        key = event.kv.key
        self._revision = max(self._revision, event.kv.mod_revision)
        if event.kind is EventKind.DELETE:
            gone = self._known.pop(key, None)
            if gone is not None and gone.id in self._tasks and gone.state is SnapshotState.TAKING:
                self._tasks[gone.id].cancel()  # with its instance
            return
        record = _readable(event.kv)
        if record is not None and record.host == self._ctx.host.name:
            self._known[key] = record
            self._look(record)

    def _look(self, record: SnapshotRecord) -> None:
        if record.failure is not None:
            return
        task = self._tasks.get(record.id)
        if record.state is SnapshotState.TAKING and task is None:
            self._begin(record, self._take(record))
        elif record.state is SnapshotState.REMOVING:
            if task is None:
                self._begin(record, remove(self._ctx, record))
            elif task.get_name() == "take":
                task.cancel()  # `_done` looks again

    def _begin(self, record: SnapshotRecord, work: object) -> None:
        assert asyncio.iscoroutine(work)
        name = "take" if record.state is SnapshotState.TAKING else "remove"
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[record.id] = task
        task.add_done_callback(lambda done: self._done(record, done))

    def _done(self, record: SnapshotRecord, task: asyncio.Task[None]) -> None:
        self._tasks.pop(record.id, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("snapshot %s of %s", record.name, record.instance, exc_info=task.exception())
            return
        now = self._known.get(keys.snapshot(record.instance, record.name))
        goes = now is not None and now.id == record.id and now.state is SnapshotState.REMOVING
        if now is not None and goes and task.get_name() == "take":
            self._look(now)

    async def _take(self, record: SnapshotRecord) -> None:
        try:
            await take(self._ctx, record)
        except InnkeeperError as error:
            log.warning("snapshot %s of %s: %s", record.name, record.instance, error)
            await self._give_up(record, error)
        except Exception as error:
            log.error("snapshot %s of %s", record.name, record.instance, exc_info=error)
            await self._give_up(record, Failed(f"Taking the snapshot failed: {error!r}"))

    async def _give_up(self, record: SnapshotRecord, error: InnkeeperError) -> None:
        """Who waits is told, then nothing is left of it."""
        said = error.to_dict()
        told = await self._ctx.repo.snapshots.change(
            record, lambda now: now.model_copy(update={"failure": said}), durable=False
        )
        if told is not None and told.state is SnapshotState.TAKING:
            await self._ctx.repo.snapshots.forget(record)

    async def _undo(self, record: SnapshotRecord) -> None:
        """Its directory went with recovery; a guest whose file systems were at rest wakes up."""
        running = self._ctx.running.get(record.uid)
        if record.kind == "disks" and running is not None and running.machine.agent_open:
            await thaw(running.agent)
        await self._give_up(record, Failed("The daemon ended while the snapshot was being taken"))


def _readable(kv: KeyValue) -> SnapshotRecord | None:
    try:
        return decode(SnapshotRecord, kv)
    except StoreCorrupt as error:
        log.error("%s", error)
        return None


async def sweep_snapshots(ctx: Context) -> None:
    """Directories of snapshots that were never finished. A damaged record may be that of any: then all
    stay."""
    items = (await ctx.repo.store.list(keys.SNAPSHOTS)).items
    records = [_readable(kv) for kv in items]
    if None in records:
        return
    finished = {one.id for one in records if one is not None and one.state is not SnapshotState.TAKING}
    for directory in ctx.paths.snapshots.iterdir():
        if directory.name not in finished:
            shutil.rmtree(directory, ignore_errors=True)
    layers.sweep(ctx)
