"""A fake agent: watches what is wanted and writes the status of a VM that does as it is told.

It can fail and hang on demand, per instance: `fail["web"] = StartFailed(...)`, `hang.add("web")`.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

from innkeeper.errors import InnkeeperError, StoreCorrupt
from innkeeper.spec.instance import Ended, Failure, InstanceRecord, InstanceStatus, Power, State
from innkeeper.store import keys
from innkeeper.store.codec import decode
from innkeeper.store.kv import EventKind, Store
from innkeeper.store.repo import Repo


class Settler:
    """Use as ``async with Settler(store) as settler``."""

    def __init__(self, store: Store) -> None:
        self._repo = Repo(store)
        self.fail: dict[str, InnkeeperError] = {}
        self.hang: set[str] = set()
        self.ready = True  # whether what starts is ready at once
        self.seen: list[tuple[str, int]] = []  # (name, generation) of every record acted upon
        self._watching = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._work: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Settler:
        self._task = asyncio.create_task(self._run())
        await self._watching.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        tasks = [self._task, *self._work]
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        broken = [r for r in results if isinstance(r, Exception)]
        if broken and error is None:
            raise broken[0]

    async def _run(self) -> None:
        async with self._repo.store.watch(keys.INSTANCES) as watch:
            self._watching.set()
            async for batch in watch:
                for event in batch:
                    if event.kind is EventKind.PUT:
                        with contextlib.suppress(StoreCorrupt):
                            record = decode(InstanceRecord, event.kv)
                            self._work.add(asyncio.create_task(self.settle(record)))

    async def settle(self, record: InstanceRecord) -> None:
        """Carry out what a record wants."""
        name, wanted = record.name, record.wanted
        if name in self.hang:
            return
        self.seen.append((name, wanted.generation))
        if wanted.removed and name not in self.fail:
            await self._repo.remove_instance(name, record.uid)
            return
        before = await self._repo.status(name)
        status: InstanceStatus = before[0] if before else InstanceStatus()
        if name in self.fail:
            await self._give_up(record, status, self.fail[name])
            return
        if status.generation >= wanted.generation:
            return
        await self._repo.put_status(name, record.uid, self._done(record, status))

    def _done(self, record: InstanceRecord, status: InstanceStatus) -> InstanceStatus:
        wanted = record.wanted
        on = wanted.power is not Power.OFF
        update: dict[str, object] = {
            "generation": wanted.generation,
            "failure": None,
            "created": True,
            "state": {Power.ON: State.RUNNING, Power.PAUSED: State.PAUSED, Power.OFF: State.STOPPED}[
                wanted.power
            ],
            "epoch": wanted.epoch if on else status.epoch,
            "pid": 4711 if on else 0,
            "started_at": 1.7e9 if on else status.started_at,
            "accelerator": "tcg" if on else "",
            "ready": on and self.ready,
        }
        if not on and status.epoch:
            update["ended"] = Ended(epoch=status.epoch, reason="stopped", at=1.7e9)
        return status.model_copy(update=update)

    async def _give_up(self, record: InstanceRecord, status: InstanceStatus, error: InnkeeperError) -> None:
        failure = Failure(generation=record.wanted.generation, **error.to_dict())
        state = State.STOPPED if status.state is State.PENDING else status.state
        failed = status.model_copy(update={"failure": failure, "state": state})
        await self._repo.put_status(record.name, record.uid, failed)
        first = record.wanted.generation == 1
        if first and (record.wanted.remove_if_start_fails or not status.created):
            await self._repo.remove_instance(record.name, record.uid)

    async def end(self, name: str, reason: str = "guest-shutdown", detail: str = "") -> None:
        """The VM's run ends by itself."""
        view = await self._repo.view(name)
        ended = Ended(epoch=view.record.wanted.epoch, reason=reason, at=1.7e9, detail=detail)
        update = {"state": State.STOPPED, "ended": ended, "ready": False, "pid": 0}
        await self._repo.put_status(name, view.record.uid, view.status.model_copy(update=update))
