"""One running QEMU as a Machine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from innkeeper.engine.base import (
    Counters,
    EventKind,
    Exit,
    Machine,
    MachineEvent,
    Moment,
    RunState,
    ThreadIds,
)
from innkeeper.engine.memory import Ram
from innkeeper.engine.qemu import commands, counters, ram, state, timers
from innkeeper.engine.qemu.balloon import Ballooned
from innkeeper.engine.qemu.dimms import DimmSlots
from innkeeper.engine.qemu.inspection import QemuInspection
from innkeeper.engine.qemu.launch_record import LaunchRecord
from innkeeper.engine.qemu.links import Link, living_passts
from innkeeper.engine.qemu.process import Process
from innkeeper.engine.qemu.qmp import Monitor
from innkeeper.engine.qemu.throttle import DiskThrottles
from innkeeper.engine.qemu.vcpus import VcpuPlaces
from innkeeper.paths import RuntimeFiles

EVENT_QUEUE_LIMIT: Final = 256
RECONNECT_DEADLINE_S: Final = 2.0


class QemuMachine(VcpuPlaces, DimmSlots, DiskThrottles, Ballooned):
    """`connect` before use; a machine that is not connected can be killed, and tries again when asked
    for its state."""

    def __init__(
        self,
        process: Process,
        monitor: Monitor,
        record: LaunchRecord,
        socket: Path,
        *,
        ram: Ram | None,
        links: Sequence[Link] = (),
    ) -> None:
        self._ram = ram  # ours; closed when the VM is gone or let go of
        self.links = list(links)
        self._process = process
        self._monitor = monitor
        self._record = record
        self._socket = socket
        self._events: asyncio.Queue[MachineEvent | None] = asyncio.Queue(EVENT_QUEUE_LIMIT)
        self._shutdown_cause = ""
        self._counts_balloon = True  # until QEMU says that it has none
        self._pump: asyncio.Task[None] | None = None
        self._end = asyncio.create_task(self._announce_end())
        self.times_ms: Mapping[str, float] = {}
        self.agent_open = False

    async def connect(self, deadline_s: float) -> None:
        """Raises EngineError when QEMU does not answer in time."""
        await self._monitor.connect(self._socket, deadline_s)
        self._pump = asyncio.create_task(self._run_pump())
        self.agent_open = await commands.agent_port_open(self._monitor)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.pid, *living_passts(self._record.passt_pids))

    @property
    def epoch(self) -> int:
        return self._record.epoch

    @property
    def accelerator(self) -> str:
        return self._record.accelerator

    @property
    def version(self) -> str:
        return self._monitor.version

    @property
    def started_at(self) -> float:
        return self._record.started_at

    @property
    def ram_private(self) -> bool:
        return self._record.ram_private

    @property
    def ram(self) -> Ram:
        """Its RAM; duplicate it to keep it."""
        if self._ram is None:
            self._ram = ram.of_process(self.pid)
        return self._ram

    async def run_state(self) -> RunState:
        return await commands.query_status(await self.answering())

    async def answering(self, deadline_s: float = RECONNECT_DEADLINE_S) -> Monitor:
        """Its monitor, connected anew if need be. Raises EngineError when it does not answer in time."""
        if self._pump is None or self._pump.done():
            await self._monitor.disconnect()
            self._monitor = Monitor(self._monitor.name)
            await self.connect(deadline_s)
        return self._monitor

    async def inspection(self) -> QemuInspection:
        return QemuInspection(await self.answering(), self.links)

    async def pause(self) -> None:
        await self._monitor.execute("stop")

    async def resume(self) -> None:
        await self._monitor.execute("cont")

    @property
    def ram_used_bytes(self) -> int:
        return self.ram.size_bytes if self.ram_private else self.ram.used_bytes

    def share_ram(self) -> Ram:
        return self.ram.dup()

    async def freeze(self, state_file: Path) -> None:
        await self.hold_links()
        await self._take_back()
        await self._monitor.execute("stop")
        ram.protect(self.ram)
        await state.save(self._monitor, state_file)

    async def thaw(self, *, paused: bool) -> None:
        try:
            if not paused:
                await self._monitor.execute("cont")
        finally:
            self.release_links()

    async def _take_back(self) -> None:
        """A paused VM whose hand-over failed has inactive disks, and QEMU takes them back only when it
        runs: here for an instant."""
        if await commands.handed_over(self._monitor):
            await self._monitor.execute("cont")
            await self._monitor.execute("stop")

    async def restore(self, moment: Moment, *, paused: bool) -> None:
        await state.load(self._monitor, moment.state)
        await self._rearm()
        self.agent_open = await commands.agent_port_open(self._monitor)
        if not paused:
            await self._monitor.execute("cont")

    async def receive(self, old: Machine) -> None:
        assert isinstance(old, QemuMachine)
        await old._take_back()
        if not old._tracks_writes():
            await old._monitor.execute("stop")
        await state.move(old._monitor, self._monitor)
        await self._rearm()
        self.agent_open = await commands.agent_port_open(self._monitor)

    async def _rearm(self) -> None:
        if self._record.machine.startswith("virt"):
            await timers.rearm(self._monitor)

    def _tracks_writes(self) -> bool:
        """Whether its RAM can be moved while it runs. Under TCG, QEMU before 9.0 misses writes then, and the
        guest's memory is torn (upstream fix: physmem, dirty bitmap coherency with TCG, March 2024)."""
        return self.accelerator != "tcg" or int(self.version.partition(".")[0] or 0) >= 9

    def retire(self) -> None:
        """It has written back everything when it handed over, so it can be killed."""
        self._process.signal(signal.SIGKILL)

    def renamed(self, files: RuntimeFiles) -> None:
        self._socket = files.qmp

    async def succeed(self, old: Machine) -> None:
        """The other process ends before the connections are let go: it would still read from them."""
        assert isinstance(old, QemuMachine)
        await old._process.ended.wait()
        if self.ram_private:
            ram.seal(self.ram)  # its last writer is gone: what is shared stays as it is
        self.release_links()

    async def hold_links(self) -> None:
        for link in self.links:
            await link.hold()

    def release_links(self) -> None:
        for link in self.links:
            link.release()

    async def power_button(self) -> None:
        await self._monitor.execute("system_powerdown")

    async def kill(self) -> None:
        await self._process.end()

    async def screenshot(self) -> bytes:
        return await commands.screendump(self._monitor)

    async def thread_ids(self) -> ThreadIds:
        return await counters.thread_ids(self._monitor)

    async def counters(self) -> Counters:
        kvm = self.accelerator == "kvm"
        told = await counters.read(self._monitor, kvm=kvm, balloon=self._counts_balloon)
        self._counts_balloon = told.balloon_bytes is not None
        return told

    async def events(self) -> AsyncIterator[MachineEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    async def wait_exit(self) -> Exit:
        await asyncio.shield(self._end)
        return Exit(self._process.status, self._shutdown_cause)

    async def detach(self) -> None:
        for task in (self._end, self._pump):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._monitor.disconnect()
        self._process.detach()
        self._close_descriptors()
        self._push(None)

    def _close_descriptors(self) -> None:
        """passt ends when the last end of its connection that is not its own is closed."""
        for link in self.links:
            link.close()
        if self._ram is not None:
            self._ram.close()
            self._ram = None

    async def _run_pump(self) -> None:
        """Translate QMP events until the connection ends."""
        async for message in self._monitor.events():
            event = self._translate(message)
            if event is not None:
                self._push(event)

    async def _announce_end(self) -> None:
        await self._process.ended.wait()
        if self._pump is not None:
            # The SHUTDOWN event was sent before QEMU went: let the pump read what is left of it.
            await asyncio.wait([self._pump], timeout=1.0)
        await self._monitor.disconnect()
        self._close_descriptors()
        self._push(MachineEvent(EventKind.ENDED, self._shutdown_cause))
        self._push(None)

    def _push(self, event: MachineEvent | None) -> None:
        if self._events.full():
            self._events.get_nowait()
        self._events.put_nowait(event)

    def _translate(self, message: dict[str, Any]) -> MachineEvent | None:
        data = message.get("data") or {}
        match message.get("event"):
            case "VSERPORT_CHANGE" if data.get("id") == "agent0":
                self.agent_open = bool(data.get("open"))
                return MachineEvent(EventKind.AGENT_OPENED if self.agent_open else EventKind.AGENT_CLOSED)
            case "SHUTDOWN":
                self._shutdown_cause = str(data.get("reason", ""))
                return MachineEvent(EventKind.SHUTDOWN, self._shutdown_cause)
            case "RESET":
                return MachineEvent(EventKind.RESET, str(data.get("reason", "")))
            case "STOP" | "RESUME":
                return MachineEvent(EventKind.STATE, str(message["event"]).lower())
            case "GUEST_PANICKED":
                return MachineEvent(EventKind.PANICKED, str(data.get("action", "")))
            case "BALLOON_CHANGE":
                return MachineEvent(EventKind.BALLOON, str(data.get("actual", "")))
            case "DEVICE_DELETED":
                return MachineEvent(EventKind.DEVICES, str(data.get("device", "")))
            case "BLOCK_IO_ERROR":
                full = data.get("nospace")
                return MachineEvent(EventKind.IO_ERROR, "no space" if full else str(data.get("reason", "")))
            case _:
                return None
