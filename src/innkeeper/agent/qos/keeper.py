"""Keeps every VM in its control group, and the group as it is to be: level-triggered, like everything here.

Somebody may remove a group or move processes out of it, an administrator or another manager of groups: then
it is made anew, and the VM's status says so once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from innkeeper.agent.context import Context, Running
from innkeeper.agent.qos.enforce import enforce, enforce_aside
from innkeeper.agent.qos.fairness import Fairness
from innkeeper.agent.qos.together import Together
from innkeeper.errors import InnkeeperError, StoreError
from innkeeper.spec.fairness import INTERVAL_S
from innkeeper.spec.instance import InstanceRecord

log = logging.getLogger("innkeeper.qos")

# Nobody tells of a group that is gone.
LOOK_INTERVAL_S: Final = 2.0
# Where many start at once, one look is for all of them.
GATHER_S: Final = 0.2
REMADE_NOTE: Final = "its control group was removed or it was moved out of it by somebody else; made anew"


class QosKeeper:
    """`run` until cancelled."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._told: dict[str, str] = {}
        self._together = Together()
        self._fairness = Fairness()

    async def run(self) -> None:
        while True:
            self._ctx.qos_changed.clear()
            try:
                contended = await self.look()
            except StoreError as error:
                contended = False
                log.warning("noting the state of control groups failed: %s", error)
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that comes with the event.
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._changed(correcting=contended)
                    await asyncio.sleep(GATHER_S)

    async def _changed(self, correcting: bool) -> None:
        """Wait for news; while VMs wait for each other their weights are corrected again and again."""
        while correcting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S):
                    await self._ctx.qos_changed.wait()
                    return
            correcting = self._compare()
            enforce(self._ctx, parts=("cpu",))
        await self._ctx.qos_changed.wait()

    def _compare(self) -> bool:
        """What busy VMs got with what they should have; true while they wait for each other."""
        return self._fairness.look(self._ctx, self._together.busy, self._ctx.clock.monotonic())

    async def look(self) -> bool:
        """One look at everything; true while VMs wait for each other's CPUs."""
        for uid, running in list(self._ctx.running.items()):
            if self._ctx.cgroups.bases and running.at_rest.is_set():
                await self._keep_in(uid, running)
        standing = self._together.look(self._ctx, self._ctx.clock.monotonic())
        self._ctx.cpu_cores = standing.cores
        contended = self._compare()
        outcome = await enforce_aside(self._ctx)
        self._ctx.cgroups.weigh(standing.weight)
        for uid, parts in outcome.items():
            await self._tell_parts(uid, {part: why for part, why in parts.items() if why})
        for uid in set(self._told) - set(self._ctx.running):
            del self._told[uid]
        return contended

    async def _keep_in(self, uid: str, running: Running) -> None:
        cgroups, pids, pid = self._ctx.cgroups, running.machine.pids, running.machine.pid
        group = cgroups.get(uid)
        if group is not None and group.holds(pid):
            return
        was_in = group is not None and pid in group.moved_in
        try:
            made = cgroups.create(uid)
            await asyncio.to_thread(made.add, pids)
        except InnkeeperError as error:
            self._tell_once(uid, error.message)
            return
        if running.gone.is_set():
            cgroups.leave(uid)  # it ended meanwhile
        elif was_in and made.holds(pid):
            self._tell_once(uid, REMADE_NOTE)
            await self._note(uid, REMADE_NOTE)

    def _tell_once(self, uid: str, what: str) -> None:
        if self._told.get(uid) != what:
            self._told[uid] = what
            log.warning("the VM %s: %s", uid, what)

    async def _note(self, uid: str, note: str) -> None:
        if (record := self._record(uid)) is not None:
            await self._ctx.publish(record, note=note)

    async def _tell_parts(self, uid: str, not_in_force: dict[str, str]) -> None:
        """In the status; the store is asked only where something is new."""
        status = self._ctx.statuses.get(uid)
        if status is None or status.qos == not_in_force or uid not in self._ctx.running:
            return
        if (record := self._record(uid)) is not None:
            await self._ctx.publish(record, qos=not_in_force)

    def _record(self, uid: str) -> InstanceRecord | None:
        return next((one for one in self._ctx.records.values() if one.uid == uid), None)
