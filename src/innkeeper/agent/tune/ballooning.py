"""The loop that asks VMs about their memory and tells them how much to make do with.

What to tell is decided in tune/balloon.py; here it is asked and told, each VM in a task of its own with a
deadline, so that one that hangs holds up nobody. A VM that something is being done to - a verb, a fork, a
snapshot - is left alone meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from innkeeper.agent.context import Context, Running
from innkeeper.agent.tune import supply
from innkeeper.agent.tune.balloon import Host, View, step
from innkeeper.agent.tune.memo import RULES, Memory, Rules, Vm
from innkeeper.engine.base import LaunchPlan, Machine
from innkeeper.engine.memory import Balloon
from innkeeper.errors import EngineError, InnkeeperError
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, State
from innkeeper.spec.overcommit import beside_ram_bytes
from innkeeper.spec.qos import share_number

log = logging.getLogger("innkeeper.balloon")

TICK_S: Final = 2.0
# While there is nothing to do the guests are asked this seldom: 0.2 ms of ours, and 1 ms of the guest's.
CALM_S: Final = 30.0
# With many VMs to look after each has to wait a little longer: at most so many are asked a second.
ASKED_A_SECOND: Final = 50
ANSWER_WITHIN_S: Final = 1.0
WAKES_AFTER_S: Final = 0.5

NO_DEVICE = "it was started before VMs had balloons; restart it"
PAGES = "its memory is in huge pages, and a balloon takes 4 KiB at a time"
LOCKED = "its memory is locked"
TAKEN = "its memory was taken as a whole at its start (memory.prealloc)"
SHARED = "it shares RAM with forks, a template or a snapshot until it has RAM of its own"


@dataclass(slots=True)
class _Asked:
    """What is known of one VM's balloon, of the very process that was asked."""

    machine: Machine
    at: float
    balloon: Balloon | None = None
    backed: int = 0


class Balloons:
    """`run` until cancelled. `for_vms`: the memory all VMs together may have; None: all there
    is."""

    def __init__(
        self,
        ctx: Context,
        for_vms: Callable[[], int | None] = lambda: None,
        *,
        root: Path = Path("/"),
        rules: Rules = RULES,
    ) -> None:
        self._ctx, self._for_vms, self._root, self._rules = ctx, for_vms, root, rules
        self._memory = Memory()
        self._known: dict[str, _Asked] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by uid
        self._said: dict[str, str] = {}
        self._brisk_since: float | None = None

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self.look()
                except (OSError, ValueError, InnkeeperError) as error:
                    log.warning("balloons were not looked after: %r", error)
                await self._ctx.clock.sleep(WAKES_AFTER_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S - WAKES_AFTER_S):
                        await self._ctx.balloon_news.wait()
                self._ctx.balloon_news.clear()
        finally:
            await self.close()

    async def close(self) -> None:
        """Every balloon stays as it is; the next daemon goes on from there."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def look(self) -> None:
        """One round."""
        now = self._ctx.clock.monotonic()
        records = {record.uid: record for record in self._ctx.records.values()}
        there = {uid: one for uid, one in self._ctx.running.items() if uid in records}
        for uid in self._known.keys() - there.keys():
            del self._known[uid]
            self._said.pop(uid, None)
        if not there:
            return
        host = self._host(there.values())
        brisk = self._brisk(there, host, now)
        every_s = max(TICK_S, len(there) / ASKED_A_SECOND) if brisk else CALM_S
        for uid, running in there.items():
            own_s = TICK_S if _unheard(running.balloon) else every_s
            self._ask(uid, running, records[uid], round(own_s), now)
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=ANSWER_WITHIN_S)
        now = self._ctx.clock.monotonic()
        # What was asked for its memory seldom until a moment ago has not told for so long, either.
        lately = self._brisk_since is not None and now - self._brisk_since > 4 * every_s
        patience_s = every_s if lately else CALM_S
        vms = [
            self._vm(records[uid], running, known, patience_s)
            for uid, running in there.items()
            if (known := self._known.get(uid)) and known.balloon and self._may_ask(records[uid], running)
        ]
        decision = step(self._memory, host, vms, now, self._rules)
        for uid, view in decision.views.items():
            there[uid].balloon = view
        for uid, target in decision.targets.items():
            if not self._start(uid, self._tell(there[uid], records[uid], target)):
                self._memory.untold(uid)
        for uid, running in there.items():
            await self._publish(records[uid], running, decision.views.get(uid))

    # -- what is looked at -------------------------------------------------------------------------

    def _host(self, running: Any) -> Host:
        accounts = [supply.of_host(self._root)]
        if (capacity := self._for_vms()) is not None:
            accounts.append(supply.of_vms(capacity, [one.machine for one in running], self._root))
        return Host(tuple(accounts), supply.pressure(self._root))

    def _brisk(self, there: dict[str, Running], host: Host, now: float) -> bool:
        """Whether there is something to do, or anything that a guest might need back."""
        views = [one.balloon for one in there.values() if one.balloon is not None]
        short = any(one.left < self._rules.goal * one.capacity for one in host.accounts)
        limited = any(
            (limit := _limit(record, there[record.uid].plan)) is not None and limit < record.spec.memory.size
            for record in self._ctx.records.values()
            if record.uid in there
        )
        taken = any(view.left < view.given or view.target < view.given for view in views)
        brisk = short or limited or taken or self._memory.pressed
        if not brisk:
            self._brisk_since = None
        elif self._brisk_since is None:
            self._brisk_since = now
        return brisk

    def _may_ask(self, record: InstanceRecord, running: Running) -> bool:
        status = self._ctx.statuses.get(record.uid, InstanceStatus())
        return (
            running.plan is not None
            and running.plan.balloon
            and running.at_rest.is_set()
            and not running.gone.is_set()
            and status.state is State.RUNNING
            and not status.template
            and not self._ctx.busy(record.name)
        )

    def _ask(self, uid: str, running: Running, record: InstanceRecord, every_s: int, now: float) -> None:
        known = self._known.get(uid)
        if known is not None and known.machine is not running.machine:
            known = None
        if uid in self._tasks or not self._may_ask(record, running):
            return
        if known is None:
            known = self._known[uid] = _Asked(running.machine, now - CALM_S)
        if known.balloon is None or now - known.at >= every_s - TICK_S / 2:
            known.at = now
            self._start(uid, self._read(known, every_s))

    async def _read(self, known: _Asked, every_s: int) -> None:
        known.balloon = await known.machine.balloon(every_s=every_s)
        if known.machine.reclaimable:
            known.backed = sum(known.machine.ram_backing().values())

    def _vm(self, record: InstanceRecord, running: Running, known: _Asked, patience_s: float) -> Vm:
        assert running.plan is not None and known.balloon is not None
        qos = record.spec.qos.memory
        return Vm(
            uid=record.uid,
            given=running.plan.ram_bytes,
            left=known.balloon.left_bytes,
            guest=known.balloon.guest,
            shares=float(share_number(qos.shares)),
            reservation=qos.reservation,
            limit=_limit(record, running.plan),
            wanted=qos.balloon == "auto",
            barred=_barred(running.plan, known.machine),
            backed=known.backed,
            run=(known.machine, running.balloon_runs),
            tells_every_s=patience_s,
        )

    # -- what is done ------------------------------------------------------------------------------

    def _start(self, uid: str, work: Coroutine[Any, Any, None]) -> bool:
        """Whether it was: not while the VM has not answered to what came before."""
        if uid in self._tasks:
            work.close()
            return False
        task = asyncio.create_task(work)
        self._tasks[uid] = task
        task.add_done_callback(lambda done: self._done(uid, done))
        return True

    def _done(self, uid: str, task: asyncio.Task[None]) -> None:
        del self._tasks[uid]
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, InnkeeperError | OSError):
            log.debug("the balloon of %s: %s", uid, error)  # asked again when it is due
        else:
            log.error("the balloon of %s", uid, exc_info=error)

    async def _tell(self, running: Running, record: InstanceRecord, target: int) -> None:
        known = self._known.get(record.uid)
        # Looked at once more with nothing in between: what comes later finds this command before its own.
        if known is None or known.machine is not running.machine or not self._may_ask(record, running):
            running.balloon_runs += 1
            return
        running.balloon_asked = True
        log.info("%s: its balloon is to leave it %d MiB", record.name, target >> 20)
        try:
            await running.machine.set_balloon(target)
        except (EngineError, OSError):
            self._memory.untold(record.uid)
            raise

    async def _publish(self, record: InstanceRecord, running: Running, view: View | None) -> None:
        """In the status, once, what there is to say; numbers are the metrics'."""
        said = self._said.get(record.uid)
        if running.plan is not None and not running.plan.balloon:
            text = NO_DEVICE
        elif view is None or (view.standing == "silent" and not view.overdue):
            return
        else:
            text = "" if view.standing == "never" else view.why
        if text != said and record.uid in self._ctx.running:
            self._said[record.uid] = text
            await self._ctx.publish(record, balloon=text)


def _unheard(view: View | None) -> bool:
    """Of one that is new here: whether its guest tells anything is to be known soon."""
    return view is None or (view.standing == "silent" and not view.overdue)


def _limit(record: InstanceRecord, plan: LaunchPlan | None) -> int | None:
    """Of its RAM alone: QEMU's own part is within the limit, too."""
    limit = record.spec.qos.memory.limit
    translated = plan.translated_bytes if plan is not None else 0
    return None if limit is None else max(0, limit - beside_ram_bytes(translated))


def _barred(plan: LaunchPlan, machine: Machine) -> str:
    """Why nothing can be taken from it."""
    if plan.memory.page_bytes:
        return PAGES
    if plan.memory.locked:
        return LOCKED
    if plan.memory.prealloc:
        return TAKEN
    try:
        return "" if machine.reclaimable else SHARED
    except EngineError as error:
        return error.message
