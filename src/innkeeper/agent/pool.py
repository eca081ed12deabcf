"""Keeps, for each template that has a pool, so many copies spawned ahead: whoever claims one need not wait
for a QEMU to start.

A spare is no instance yet. It has a uid, disks and a QEMU that waits for the moment's state, and a record in
the store by which it is claimed (store/spares.py). The daemon that made it ends it; the next daemon ends what
one that was killed left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import uuid
from collections.abc import Mapping
from typing import Final

from innkeeper.agent import templates
from innkeeper.agent.context import Context
from innkeeper.agent.ops.copy import make_files, plan_of_copy
from innkeeper.agent.ops.launch import MEMORY_RESERVE_BYTES, QEMU_OVERHEAD_BYTES
from innkeeper.engine.base import Machine
from innkeeper.errors import InnkeeperError
from innkeeper.spec.copying import spec_of_copy
from innkeeper.spec.instance import ForkOrigin, InstanceRecord, InstanceStatus, Power, Wanted
from innkeeper.store.spares import SpareRecord

log = logging.getLogger("innkeeper.agent")

# Not at once after a claim: who claimed one is still starting, and may claim more.
REFILL_DELAY_S: Final = 0.25
# After a failure, and to notice what nobody tells of, such as memory that is free again.
LOOK_INTERVAL_S: Final = 15.0
# Beyond what one more QEMU takes, this much of the host's memory stays free for VMs that are asked for.
SPARE_MEMORY_BYTES: Final = 8 * QEMU_OVERHEAD_BYTES + MEMORY_RESERVE_BYTES


class Pool:
    """`recover` before anything is started, then `run` until cancelled, then `close`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._waiting = ctx.spares.waiting
        self._tokens: dict[str, str] = {}  # of each that was made: the moment it is for

    async def recover(self, alive: Mapping[str, list[int]]) -> None:
        """End what an earlier daemon left. An instance that had claimed one begins anew, without it."""
        for record in await self._ctx.repo.spares.all():
            for pid in alive.get(record.uid, []):
                await self._ctx.engine.destroy_stray(pid)
            await self._forget(record.uid)

    async def run(self) -> None:
        changed = self._ctx.spares.changed
        while True:
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that comes with the event.
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await changed.wait()
                await asyncio.sleep(REFILL_DELAY_S)
            changed.clear()
            try:
                await self._tend()
            except InnkeeperError as error:
                log.warning("filling a pool failed: %s", error)

    async def close(self) -> None:
        for uid in list(self._waiting):
            await self._end(uid)

    async def _tend(self) -> None:
        """One look: what is of no use any more goes, what is missing is made."""
        wanted = {token: one for one in self._ctx.records.values() if (token := self._token_of(one))}
        self._tokens = {uid: token for uid, token in self._tokens.items() if uid in self._waiting}
        for uid, machine in list(self._waiting.items()):
            if self._tokens.get(uid) not in wanted or await _ended(machine):
                await self._end(uid)
        for token, template in wanted.items():
            pool = template.wanted.template.pool if template.wanted.template else 0
            free = await self._free(token)
            for uid in free[pool:]:
                await self._end(uid)
            for _ in range(pool - len(free)):
                if self._ctx.host.memory_available_bytes() < SPARE_MEMORY_BYTES:
                    break
                if self._ctx.spares.changed.is_set():  # somebody is busy with them: later
                    break
                await self._make(template, token)
            if self._token_of(template) == token:
                await self._ctx.publish(template, spares=len(await self._free(token)))

    async def _free(self, token: str) -> list[str]:
        """The uids of those that wait, and that nobody has claimed."""
        known = {record.uid for record in await self._ctx.repo.spares.all()}
        return [uid for uid in self._waiting if uid in known and self._tokens.get(uid) == token]

    def _token_of(self, record: InstanceRecord) -> str:
        status = self._ctx.statuses.get(record.uid, InstanceStatus())
        wants = record.wanted.template is not None and not record.wanted.removed
        return status.template if wants and record.uid in self._ctx.running else ""

    async def _make(self, template: InstanceRecord, token: str) -> None:
        ctx, uid = self._ctx, str(uuid.uuid4())
        record = SpareRecord(uid=uid, template_uid=template.uid, token=token)
        await ctx.repo.spares.put(record)
        ctx.checkpoint("spare.begun")
        try:
            machine = await self._spawn(record, template)
        except BaseException:
            await asyncio.shield(self._forget(uid))
            raise
        self._waiting[uid], self._tokens[uid] = machine, token
        ctx.checkpoint("spare.made")
        await ctx.repo.spares.put(record.model_copy(update={"ready": True}))
        ctx.checkpoint("spare.ready")

    async def _spawn(self, record: SpareRecord, template: InstanceRecord) -> Machine:
        ctx, uid = self._ctx, record.uid
        origin = ForkOrigin(parent=template.name, parent_uid=template.uid, moment=record.token, template=True)
        like = InstanceRecord(
            name=f"{template.name[:50]}-spare",
            uid=uid,
            created_at=ctx.clock.time(),
            host=template.host,
            image_id=template.image_id,
            spec=spec_of_copy(template.spec),
            wanted=Wanted(power=Power.ON, epoch=1),
            fork=origin,
        )
        with templates.borrowed(ctx, origin) as taken:
            assert taken.plan is not None
            make_files(ctx, like, taken)
            plan = plan_of_copy(ctx, like, taken.plan)
            async with ctx.launch_slots:
                return await ctx.engine.launch(plan, ctx.paths.runtime(uid), ctx.owner(uid), taken.machine)

    async def _end(self, uid: str) -> None:
        if await self._ctx.repo.spares.forget(uid):
            await self._ctx.spares.drop(uid)
            self._remove_files(uid)
        # else it was claimed meanwhile: its instance takes it, or drops it
        self._tokens.pop(uid, None)

    async def _forget(self, uid: str) -> None:
        self._remove_files(uid)
        await self._ctx.repo.spares.forget(uid)

    def _remove_files(self, uid: str) -> None:
        self._ctx.cgroups.leave(uid)
        shutil.rmtree(self._ctx.paths.runtime(uid).directory, ignore_errors=True)
        shutil.rmtree(self._ctx.paths.instance(uid).directory, ignore_errors=True)


async def _ended(machine: Machine) -> bool:
    try:
        await machine.run_state()
    except InnkeeperError:
        return True
    return False
