"""What happens to a running VM by itself: it becomes ready, panics, fills the disk, hangs, ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from innkeeper.agent import devices
from innkeeper.agent.context import Context, Running
from innkeeper.agent.ops import balloon
from innkeeper.agent.qos.memory import why_killed
from innkeeper.engine import plan_file
from innkeeper.engine.base import EventKind, Exit, RunState
from innkeeper.errors import EngineError, InnkeeperError, StoreError
from innkeeper.guest.identity import assume, catch_up
from innkeeper.spec.instance import Ended, InstanceRecord, State
from innkeeper.spec.memory import MemoryNow
from innkeeper.telemetry.tail import last_lines, panic_words, read_tail

log = logging.getLogger("innkeeper.agent")

HEALTH_INTERVAL_S: Final = 15.0
# How often a boot that is waited for is searched for a panic, and for how long.
BOOT_LOOK_INTERVAL_S: Final = 0.5
BOOT_LOOK_S: Final = 600.0
# A dump of all CPUs' registers and calls is some KiB behind the line that says why.
PANIC_TAIL_BYTES: Final = 1 << 16
# printed by panic(), kernel/panic.c; and systemd's and busybox's way of giving up
PANIC_MARKS: Final = (b"Kernel panic - not syncing", b"end Kernel panic")
# As `status.changed`: whatever was wanted last is to be looked at once more.
NEVER: Final = -1
# Until they stay the same: those of IPv6 come seconds after the others.
ADDRESS_LOOKS_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

_STATES: Final = {
    RunState.RUNNING: State.RUNNING,
    RunState.PAUSED: State.PAUSED,
    RunState.INCOMING: State.PAUSED,
    RunState.IO_ERROR: State.PAUSED,
    RunState.PANICKED: State.PAUSED,
    RunState.SHUT_DOWN: State.PAUSED,
}


class Watcher:
    """Follows one running VM from launch (or adoption) to its end; cancelled when the daemon stops."""

    def __init__(
        self, ctx: Context, record: InstanceRecord, running: Running, on_end: Callable[[InstanceRecord], None]
    ) -> None:
        self._ctx, self._record, self._running = ctx, record, running
        self._on_end = on_end
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeting: asyncio.Task[None] | None = None
        self._spawn(self._follow())
        self._spawn(self._watch_boot())
        if running.machine.agent_open:
            self._greet()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("watching %s failed", self._record.name, exc_info=task.exception())

    async def close(self) -> None:
        """Let go: the VM runs on."""
        await self.let_go()
        await self._running.agent.close()

    async def let_go(self) -> None:
        """Stop following this process; the guest agent's connection stays with whoever uses it."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._running.machine.detach()

    async def _follow(self) -> None:
        async for event in self._running.machine.events():
            match event.kind:
                case EventKind.AGENT_OPENED:
                    self._greet()
                case EventKind.AGENT_CLOSED:
                    if self._greeting is not None:
                        self._greeting.cancel()
                    await self._tell(agent=False)
                case EventKind.PANICKED:
                    await self._note_panic()
                case EventKind.IO_ERROR:
                    what = "the host's disk is full" if event.detail == "no space" else event.detail
                    note = f"paused by a disk error: {what}; free space, then: inn resume {self._record.name}"
                    await self._tell(state=State.PAUSED, note=note)
                case EventKind.BALLOON:
                    self._ctx.balloon_news.set()
                case EventKind.RESET:
                    # A kernel that boots needs more than it will need later, and in RAM that is shared its
                    # driver must find nothing to do.
                    with contextlib.suppress(EngineError):
                        await balloon.empty(self._running)
                case EventKind.DEVICES:
                    await self._note_devices()
                case EventKind.STATE:
                    await self.check()
                case EventKind.ENDED:
                    # Of a process that was handed over from, this is where following it is given up.
                    await self._running.at_rest.wait()
                    await self._note_end(await self._running.machine.wait_exit())
                case _:
                    pass

    async def _tell(self, **changes: Any) -> None:
        """What the store cannot take now is written when it can (Context.publish); we go on watching."""
        with contextlib.suppress(StoreError):
            await self._ctx.publish(self._record, **changes)

    async def check(self) -> None:
        """Ask QEMU how it is; one that does not answer shows as hung until it does again."""
        status = self._ctx.statuses[self._record.uid]
        if status.state in (State.STOPPING, State.REMOVING) or self._not_to_be_asked():
            return
        try:
            state = await self._running.machine.run_state()
        except EngineError as error:
            if not self._not_to_be_asked():
                note = f"QEMU does not answer ({error.message})"
                await self._tell(state=State.HUNG, note=note)
            return
        if self._not_to_be_asked():
            return
        note = status.note
        if state is RunState.RUNNING or status.state is State.HUNG:
            note = ""
        await self._tell(state=_STATES[state], note=note)

    async def _note_devices(self) -> None:
        if not self._not_to_be_asked():
            with contextlib.suppress(InnkeeperError):
                await devices.note(self._ctx, self._record, self._running)

    def _not_to_be_asked(self) -> bool:
        return self._running.gone.is_set() or not self._running.at_rest.is_set()

    def _greet(self) -> None:
        """Once for each time the port is open: of a copy's, which is so from the start, there is an event
        besides."""
        if self._greeting is None or self._greeting.cancelling() or self._greeting.done():
            self._greeting = self._spawn(self._make_ready())

    async def _make_ready(self) -> None:
        """The agent's port was opened: see that it answers, then learn the addresses."""
        agent = self._running.agent
        try:
            await agent.ping()
        except InnkeeperError:
            return  # closed again, or too busy; the port will be opened again or `exec` will say so
        status = self._ctx.statuses[self._record.uid]
        times = dict(status.times_ms)
        note = await (self._wake() if self._running.woken else self._assume_identity(times))
        if not status.ready:
            times["ready"] = round((self._ctx.clock.time() - status.started_at) * 1000, 1)
        await self._tell(agent=True, ready=True, times_ms=times, note=note)
        await self._park_again()
        before: tuple[str, ...] = ()
        for delay_s in ADDRESS_LOOKS_S:
            await asyncio.sleep(delay_s)
            try:
                addresses = tuple(one.address for one in await agent.network_interfaces())
            except InnkeeperError:
                return
            if addresses and addresses == before:
                return
            if addresses:
                await self._tell(addresses=addresses)
            before = addresses

    async def _park_again(self) -> None:
        """A guest that was rebooted uses all the vCPUs it finds: have the step look that sees to that."""
        if self._running.plan is not None and self._running.plan.parked:
            await self._tell(changed=NEVER)
            self._ctx.moments.kick(self._record.uid)

    async def _wake(self) -> str:
        """Of one that runs on from a moment of its own: what time it is."""
        self._running.woken = False
        await catch_up(self._running.agent, self._ctx.clock.time)
        return ""

    async def _assume_identity(self, times: dict[str, float]) -> str:
        """Of a fork, before it is reported ready; what could not be done, for its status."""
        plan, origin = self._running.plan, self._record.fork
        if plan is None or plan.inherited_macs is None:
            return self._ctx.statuses[self._record.uid].note
        note = ""
        times["answer"] = round((self._ctx.clock.time() - self._running.woke_at) * 1000, 1)
        begun = self._ctx.clock.time()
        try:
            await assume(
                self._running.agent,
                name=self._record.name,
                uid=self._record.uid,
                macs=list(zip(plan.inherited_macs, cycle(nic.mac for nic in plan.nics), strict=False)),
                now=self._ctx.clock.time,
                ssh_keys=bool(origin and origin.ssh_keys),
            )
        except InnkeeperError as error:
            note = f"not all of its identity is its own: {error.message}"
        times["identity"] = round((self._ctx.clock.time() - begun) * 1000, 1)
        # Not when it was cut short: whoever looks at this VM next begins again.
        self._running.plan = replace(self._running.plan or plan, inherited_macs=None)
        with contextlib.suppress(FileNotFoundError):  # it has ended
            plan_file.save(self._ctx.paths.runtime(self._record.uid), self._running.plan)
        return note

    async def _watch_boot(self) -> None:
        """A kernel that panics says so on the serial console; tell those who wait for it to be ready."""
        path = self._ctx.paths.instance(self._record.uid).console_log
        offset = self._running.console_offset
        for _ in range(int(BOOT_LOOK_S / BOOT_LOOK_INTERVAL_S)):
            if self._ready() or self._running.gone.is_set():
                return
            offset, found = _search(path, offset)
            if found:
                await self._note_panic()
                return
            await asyncio.sleep(BOOT_LOOK_INTERVAL_S)

    def _ready(self) -> bool:
        return self._ctx.statuses[self._record.uid].ready

    async def _note_panic(self) -> None:
        await asyncio.sleep(0.2)  # let the last lines of the trace arrive
        log = self._ctx.paths.instance(self._record.uid).console_log
        words = panic_words(read_tail(log, PANIC_TAIL_BYTES).decode(errors="replace"))
        why = " | ".join(line[:200] for line in words) or last_lines(log, 5)
        await self._tell(panicked=True, note=f"the guest's kernel panicked: {why}")

    async def _note_end(self, how: Exit) -> None:
        ctx, record, running = self._ctx, self._record, self._running
        if ctx.running.get(record.uid) is running:
            del ctx.running[record.uid]
        await running.agent.close()
        shutil.rmtree(ctx.paths.runtime(record.uid).directory, ignore_errors=True)
        oom = why_killed(ctx.cgroups.group_of(record.uid))
        ctx.cgroups.leave(record.uid)
        ctx.qos_changed.set()
        reason, detail = end_reason(how, running.asked_to_end)
        if reason == "qemu-died" and oom:
            reason, detail = "out-of-memory", oom
        elif reason == "qemu-died":
            detail = last_lines(ctx.paths.instance(record.uid).qemu_log, 2) or detail
        await self._tell(
            durable=True,
            state=State.STOPPED,
            pid=0,
            cpus=0,
            cpus_max=0,
            disk_limits={},
            memory=MemoryNow(),
            balloon="",
            ready=False,
            agent=False,
            addresses=(),
            template="",
            spares=0,
            qos={},
            note=_end_note(record, reason, detail),
            ended=Ended(epoch=running.machine.epoch, reason=reason, at=ctx.clock.time(), detail=detail),
        )
        running.gone.set()
        ctx.freed.set()
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        self._on_end(record)


def _end_note(record: InstanceRecord, reason: str, detail: str) -> str:
    if reason == "saved":
        return f"saved; it runs on with: inn restore {record.name}"
    if reason == "out-of-memory":
        return detail
    return f"QEMU died: {detail}" if reason == "qemu-died" else ""


def end_reason(how: Exit, asked: str) -> tuple[str, str]:
    """(reason, detail) of an end; `asked` is what a verb of ours was doing. QEMU's causes: QAPI
    ShutdownCause."""
    if asked:
        return asked, how.shutdown_cause
    if how.shutdown_cause == "guest-shutdown":
        return "guest-shutdown", ""
    if how.shutdown_cause == "guest-panic":
        return "guest-panicked", ""
    if how.shutdown_cause.startswith("host"):
        return "killed", f"from outside ({how.shutdown_cause})"
    if how.status is not None and how.status < 0:
        return "qemu-died", f"killed by signal {-how.status}"
    return "qemu-died", f"exit status {how.status}" if how.status is not None else "without a word"


def _search(path: Path, offset: int) -> tuple[int, bool]:
    """Look for a panic in what was added since `offset`; the new offset overlaps a little, so that a
    mark cut in two is found."""
    try:
        with path.open("rb") as console:
            console.seek(offset)
            data = console.read(1 << 20)
    except OSError:
        return offset, False
    found = any(mark in data for mark in PANIC_MARKS)
    return max(offset, offset + len(data) - 64), found
