"""An engine without VMs, for tests of everything above the seam. It can fail, hang, die and forget,
on demand: `engine.fail["launch"] = error`, `machine.hang`, `machine.die()`. Its own test is the
contract suite in tests/contract/engine, which the real engine passes as well.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from innkeeper.drivers.run import Owner
from innkeeper.engine import plan_file
from innkeeper.engine.base import (
    Counters,
    EventKind,
    Exit,
    LaunchPlan,
    Machine,
    MachineEvent,
    Moment,
    RunState,
    ThreadIds,
    VcpuSlot,
)
from innkeeper.engine.fake_balloon import FakeBalloon
from innkeeper.engine.inspection import Inspection
from innkeeper.engine.memory import DimmPlan, Ram
from innkeeper.engine.throttle import Throttle
from innkeeper.errors import EngineError
from innkeeper.paths import RuntimeFiles


@dataclass
class FakeMachine(FakeBalloon):
    plan: LaunchPlan
    engine: FakeEngine
    pid: int
    state: RunState = RunState.RUNNING
    agent_open: bool = False
    memory: bytes = b""  # what it remembers; kept by snapshots and forks
    hang: bool = False  # answers nothing; only kill works
    ignores_power_button: bool = False
    keeps_vcpus: bool = False  # the guest gives none up
    keeps_dimms: set[int] = field(default_factory=set)  # slots of modules that the guest does not give up
    silent_on_dimms: bool = False  # nor says so
    unplug_spoils: bool = False
    version: str = "0.0-fake"
    started_at: float = 0.0
    times_ms: Mapping[str, float] = field(default_factory=dict)
    exit: Exit | None = None
    inspected: Inspection | None = None  # what it says of itself
    threads: ThreadIds = field(default_factory=lambda: ThreadIds((), {}))
    counted: Counters = field(default_factory=lambda: Counters(()))

    def __post_init__(self) -> None:
        self._queue: asyncio.Queue[MachineEvent | None] = asyncio.Queue()
        self._gone = asyncio.Event()
        self.present = set(range(self.plan.cpus))
        self.modules = {dimm.slot: dimm for dimm in self.plan.memory.dimms}
        self.throttled: dict[str, Throttle | None] = dict.fromkeys(disk.name for disk in self.plan.disks)

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.pid,)

    @property
    def epoch(self) -> int:
        return self.plan.epoch

    @property
    def accelerator(self) -> str:
        return self.plan.accelerator

    async def _answer(self, command: str) -> None:
        self.engine.calls.append(f"{command} {self.plan.name}")
        error = self.engine.fail.get(command)
        if error is not None:
            raise error
        if self.hang:
            raise EngineError(f"QEMU did not answer {command}", details={"timeout": True})
        if self._gone.is_set():
            raise EngineError("The connection to QEMU was lost")

    def emit(self, kind: EventKind, detail: str = "") -> None:
        if kind is EventKind.AGENT_OPENED:
            self.agent_open = True
        self._queue.put_nowait(MachineEvent(kind, detail))

    def die(self, status: int | None = None, cause: str = "") -> None:
        """End as the guest or the kernel would end it."""
        if self._gone.is_set():
            return
        self.exit = Exit(status, cause)
        for there in (self.engine.machines, self.engine.stand_ins):
            if there.get(self.plan.uid) is self:
                del there[self.plan.uid]
        self._gone.set()
        if cause:
            self.emit(EventKind.SHUTDOWN, cause)
        self.emit(EventKind.ENDED, cause)
        self._queue.put_nowait(None)

    async def run_state(self) -> RunState:
        await self._answer("run_state")
        return self.state

    async def inspection(self) -> Inspection:
        await self._answer("inspection")
        if self.inspected is None:
            raise EngineError("This machine was given nothing to look into")
        return self.inspected

    async def pause(self) -> None:
        await self._answer("pause")
        self.state = RunState.PAUSED

    async def resume(self) -> None:
        await self._answer("resume")
        self.state = RunState.RUNNING

    async def power_button(self) -> None:
        await self._answer("power_button")
        if not self.ignores_power_button:
            self.die(0, "guest-shutdown")

    async def kill(self) -> None:
        self.engine.calls.append(f"kill {self.plan.name}")
        self.die(-9)

    async def vcpus(self) -> list[VcpuSlot]:
        await self._answer("vcpus")
        return [
            VcpuSlot(index, index in self.present) for index in range(self.plan.cpus_max or self.plan.cpus)
        ]

    async def plug_vcpu(self, index: int) -> None:
        await self._answer("plug_vcpu")
        if index in self.present or index >= self.plan.cpus_max:
            raise EngineError(f"There is no empty place for vCPU {index}")
        self.present.add(index)

    async def unplug_vcpu(self, index: int) -> None:
        await self._answer("unplug_vcpu")
        assert not self.unplug_spoils, "a real one would corrupt its memory"
        if index == 0 or index not in self.present:
            raise EngineError(f"vCPU {index} cannot be unplugged")
        if not self.keeps_vcpus:
            self.present.discard(index)
            self.emit(EventKind.DEVICES)

    async def dimms(self) -> list[DimmPlan]:
        await self._answer("dimms")
        return sorted(self.modules.values(), key=lambda dimm: dimm.slot)

    async def plug_dimm(self, dimm: DimmPlan, plan: LaunchPlan) -> None:
        await self._answer("plug_dimm")
        if dimm.slot in self.modules or dimm.slot >= self.plan.memory.slots:
            raise EngineError(f"There is no empty slot {dimm.slot}")
        self.modules[dimm.slot] = replace(dimm, address=(4 << 30) + dimm.slot * dimm.size_bytes)

    async def unplug_dimm(self, dimm: DimmPlan) -> None:
        await self._answer("unplug_dimm")
        if dimm.slot not in self.keeps_dimms:
            self.modules.pop(dimm.slot, None)
            self.emit(EventKind.DEVICES)

    async def keeps_dimm(self, dimm: DimmPlan) -> bool:
        return dimm.slot in self.keeps_dimms and not self.silent_on_dimms

    async def throttles(self) -> dict[str, Throttle | None]:
        await self._answer("throttles")
        return dict(self.throttled)

    async def throttle(self, disk: str, limits: Throttle | None) -> None:
        await self._answer("throttle")
        if disk not in self.throttled:
            raise EngineError(f"There is no disk {disk}")
        for other, now in self.throttled.items():
            if now is not None and limits is not None and now.group == limits.group:
                self.throttled[other] = limits
        self.throttled[disk] = limits

    @property
    def ram_private(self) -> bool:
        return self.plan.ram_private

    @property
    def ram_used_bytes(self) -> int:
        return len(self.memory)

    def share_ram(self) -> Ram:
        """What the guest "remembers", in memory files of the size of its RAM."""
        parts = {piece.id: os.memfd_create("fake-ram") for piece in self.plan.pieces}
        for piece in self.plan.pieces:
            os.ftruncate(parts[piece.id], piece.size_bytes)
        os.pwrite(parts[self.plan.backends[0].id], self.memory, 0)
        return Ram(parts)

    async def freeze(self, state: Path) -> None:
        await self._answer("freeze")
        state.write_text(json.dumps({"uid": self.plan.uid, "vcpus": sorted(self.present)}))
        self.state = RunState.PAUSED
        self.frozen = True

    async def thaw(self, *, paused: bool) -> None:
        await self._answer("thaw")
        self.state = RunState.PAUSED if paused else RunState.RUNNING

    async def restore(self, moment: Moment, *, paused: bool) -> None:
        await self._answer("restore")
        assert self.plan.incoming and moment.state.exists(), "restored without a moment"
        if os.stat(moment.state).st_size:
            present = set(json.loads(moment.state.read_text())["vcpus"])
            assert present == self.present, "restored into a VM with other devices"
        self.state = RunState.PAUSED if paused else RunState.RUNNING
        self.memory = os.pread(moment.ram.parts[self.plan.backends[0].id], 4096, 0).rstrip(b"\0")
        if self.engine.opens_agent:
            self.emit(EventKind.AGENT_OPENED)

    async def receive(self, old: Machine) -> None:
        assert isinstance(old, FakeMachine) and not self.plan.ram_private
        await self._answer("receive")
        assert old.present == self.present, "received into a VM with other devices"
        self.state = old.state = RunState.PAUSED
        self.memory = old.memory

    def retire(self) -> None:
        """Its end is told at once, before anybody can look at who took over."""
        self.engine.calls.append(f"retire {self.plan.name}")
        self.exit = Exit(-9)
        self._gone.set()
        self.emit(EventKind.ENDED)
        self._queue.put_nowait(None)

    def renamed(self, files: RuntimeFiles) -> None:
        pass

    async def succeed(self, old: Machine) -> None:
        assert isinstance(old, FakeMachine)
        self.engine.calls.append(f"succeed {self.plan.name}")
        for _ in range(3):
            await asyncio.sleep(0)
        self.agent_open = old.agent_open
        self.engine.replace(old, self)

    async def screenshot(self) -> bytes:
        await self._answer("screenshot")
        return b"\x89PNG\r\n\x1a\n"

    async def thread_ids(self) -> ThreadIds:
        await self._answer("thread_ids")
        return self.threads

    async def counters(self) -> Counters:
        await self._answer("counters")
        return self.counted

    async def events(self) -> AsyncIterator[MachineEvent]:
        while (event := await self._queue.get()) is not None:
            yield event

    async def wait_exit(self) -> Exit:
        await self._gone.wait()
        assert self.exit is not None
        return self.exit

    async def detach(self) -> None:
        self._queue.put_nowait(None)


@dataclass
class FakeEngine:
    """`machines` outlive any agent that uses it, as real ones do."""

    machines: dict[str, FakeMachine] = field(default_factory=dict)
    stand_ins: dict[str, FakeMachine] = field(default_factory=dict)
    fail: dict[str, Exception] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    launch_gate: asyncio.Event | None = None  # when set, a launch waits for it
    opens_agent: bool = True

    async def launch(
        self, plan: LaunchPlan, files: RuntimeFiles, owner: Owner | None, moment: Moment | None = None
    ) -> FakeMachine:
        self.calls.append(f"launch {plan.name}")
        if self.launch_gate is not None:
            await self.launch_gate.wait()
        if "launch" in self.fail:
            raise self.fail["launch"]
        assert plan.uid not in self.machines, "two QEMUs for one instance"
        assert (moment is not None) == plan.incoming
        files.directory.mkdir(parents=True, exist_ok=True)
        machine = FakeMachine(plan, self, pid=4_000_000 + len(self.calls))
        plan_file.save(files, plan)
        machine.state = RunState.PAUSED if plan.paused else RunState.RUNNING
        if moment is not None:
            machine.state = RunState.INCOMING
        self.machines[plan.uid] = machine
        if self.opens_agent and moment is None:
            machine.emit(EventKind.AGENT_OPENED)
        return machine

    async def stand_in(
        self, old: Machine, plan: LaunchPlan, files: RuntimeFiles, owner: Owner | None
    ) -> FakeMachine:
        self.calls.append(f"stand_in {plan.name}")
        if "stand_in" in self.fail:
            raise self.fail["stand_in"]
        files.directory.mkdir(parents=True)
        plan_file.save(files, plan)
        pid = 4_000_000 + len(self.calls)
        machine = FakeMachine(plan, self, pid, state=RunState.INCOMING)
        self.stand_ins[plan.uid] = machine
        return machine

    def replace(self, old: FakeMachine, new: FakeMachine) -> None:
        """`new` is the VM now; the process of `old` is gone, without an event."""
        assert self.machines[new.plan.uid] is old
        self.machines[new.plan.uid] = self.stand_ins.pop(new.plan.uid)

    def find_running(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for machine in (*self.machines.values(), *self.stand_ins.values()):
            found.setdefault(machine.plan.uid, []).append(machine.pid)
        return found

    def listens(self, files: RuntimeFiles) -> bool:
        """A stand-in leaves its directory by renaming it when it has become the VM."""
        return files.directory.exists()

    async def adopt(
        self, uid: str, pid: int, files: RuntimeFiles, stand_in: tuple[int, RuntimeFiles] | None = None
    ) -> FakeMachine:
        if "adopt" in self.fail:
            raise self.fail["adopt"]
        if stand_in is not None:
            if self.stand_ins[uid].state is RunState.INCOMING:
                self.stand_ins[uid].die(-9)
            else:
                self.replace(self.machines[uid], self.stand_ins[uid])
        if uid not in self.machines:
            self.machines[uid] = self.stand_ins.pop(uid)  # the one before it has ended
        machine = self.machines[uid]
        machine._queue = asyncio.Queue()
        return machine

    async def destroy_stray(self, pid: int) -> None:
        self.calls.append(f"destroy {pid}")
        for machine in [machine for machine in self.machines.values() if machine.pid == pid]:
            machine.die(-9)

    def command_line(self, plan: LaunchPlan, files: RuntimeFiles) -> list[str]:
        return ["fake", plan.name]
