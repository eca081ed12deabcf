"""An engine on a bench: what a scenario of the contract needs of the fake and of the real one."""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from innkeeper.clock import SystemClock
from innkeeper.drivers.run import Owner, SystemRunner, which
from innkeeper.engine.base import DiskPlan, Engine, EventKind, LaunchPlan, Layer, Machine, MachineEvent
from innkeeper.engine.fake import FakeEngine, FakeMachine
from innkeeper.engine.qemu.engine import QemuEngine
from innkeeper.errors import StartFailed
from innkeeper.paths import RuntimeFiles
from vms import bootables, traces

DEADLINE_S = 20.0


class Bench:
    """`begin` a VM; everything begun ends with the bench."""

    real = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / "run"
        self.runs.mkdir()
        self.begun: list[LaunchPlan] = []

    @property
    def engine(self) -> Engine:
        raise NotImplementedError

    def plan(self, kind: bootables.Kind = "halt", **changes: Any) -> LaunchPlan:
        uid = str(uuid.uuid4())
        disk = bootables.boot_disk(self.root / f"{uid}.img", kind)
        plan = LaunchPlan(
            uid=uid,
            name="bench",
            epoch=3,
            binary=which("qemu-system-x86_64") or "qemu-system-x86_64",
            machine="pc-q35-7.2" if not self.real else "q35",
            accelerator="tcg",
            cpu_model="max",
            cpus=1,
            memory_bytes=16 << 20,
            disks=(DiskPlan("root", (Layer(disk, "raw"),), boot_index=0),),
            console_log=self.root / f"{uid}.console",
            qemu_log=self.root / f"{uid}.log",
        )
        return replace(plan, **changes)

    def files(self, plan: LaunchPlan) -> RuntimeFiles:
        return RuntimeFiles(self.runs / plan.uid[:12])

    async def begin(self, plan: LaunchPlan, owner: Owner | None = None) -> Machine:
        self.begun.append(plan)
        return await self.engine.launch(plan, self.files(plan), owner)

    def break_launch(self, plan: LaunchPlan) -> LaunchPlan:
        """A plan that cannot start."""
        return replace(plan, machine="no-such-machine")

    def shut_down_guest(self, machine: Machine) -> None:
        """Let the guest end by itself."""
        raise NotImplementedError

    def hang(self, machine: Machine) -> None:
        raise NotImplementedError

    def running(self) -> dict[str, int]:
        """Of those begun here: the host may have others."""
        ours = {plan.uid for plan in self.begun}
        return {uid: pids[0] for uid, pids in self.engine.find_running().items() if uid in ours}

    async def check_nothing_left(self) -> None:
        assert self.running() == {}

    async def close(self) -> None:
        for pid in self.running().values():
            await self.engine.destroy_stray(pid)
        shutil.rmtree(self.root, ignore_errors=True)


class FakeBench(Bench):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._engine = FakeEngine(opens_agent=False)

    @property
    def engine(self) -> FakeEngine:
        return self._engine

    async def begin(self, plan: LaunchPlan, owner: Owner | None = None) -> Machine:
        if plan.machine == "no-such-machine":
            self._engine.fail["launch"] = StartFailed("QEMU ended at start: unsupported machine type")
        return await super().begin(plan, owner)

    def shut_down_guest(self, machine: Machine) -> None:
        assert isinstance(machine, FakeMachine)
        machine.die(0, "guest-shutdown")

    def hang(self, machine: Machine) -> None:
        assert isinstance(machine, FakeMachine)
        machine.hang = True


class QemuBench(Bench):
    real = True

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._engine = QemuEngine(SystemRunner(), SystemClock())

    @property
    def engine(self) -> QemuEngine:
        return self._engine

    def shut_down_guest(self, machine: Machine) -> None:
        """Its code did that as soon as it ran: the plan's kind is `shutdown`."""

    def hang(self, machine: Machine) -> None:
        traces.signal_if_there(machine.pid, 19)  # SIGSTOP

    async def check_nothing_left(self) -> None:
        await super().check_nothing_left()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            _, pending = await asyncio.wait(others, timeout=5.0)
            assert not pending, f"tasks are left: {pending}"


async def ended(machine: Machine) -> list[MachineEvent]:
    """All events up to the end of the stream, which must come."""
    events = []
    async with asyncio.timeout(DEADLINE_S):
        async for event in machine.events():
            events.append(event)
    assert events and events[-1].kind is EventKind.ENDED, events
    assert [event.kind for event in events].count(EventKind.ENDED) == 1
    return events


async def shortly(check: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not check():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.01)


Scenario = Callable[[Bench], Awaitable[None]]
