"""What it costs to read the counters of 100 VMs, in CPU time of one core.

No guests: 100 processes with the threads of a QEMU, named as QEMU names them and asleep, under an engine that
answers from memory. What asking a QEMU costs on both sides is measured against one real QEMU, and added for
as often as an active VM is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random

from bench.lib.lab import Lab
from bench.lib.sample import Budget, Sample
from innkeeper.agent.context import Context, QemuView, Running
from innkeeper.agent.sampling.files import Budget as Descriptors
from innkeeper.agent.sampling.history import History
from innkeeper.agent.sampling.reader import ProcessReader
from innkeeper.agent.sampling.sampler import COUNTERS, INTERVAL_S, Sampler
from innkeeper.clock import SystemClock
from innkeeper.drivers.run import SystemRunner, which
from innkeeper.engine.base import DiskPlan, LaunchPlan, Layer
from innkeeper.engine.fake import FakeEngine, FakeMachine
from innkeeper.engine.qemu.engine import QemuEngine
from innkeeper.guest.agent import GuestAgent
from innkeeper.paths import Paths, RuntimeFiles, make_private_dir
from innkeeper.spec.host import HostNode
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, InstanceStatus, State, Wanted
from innkeeper.spec.overcommit import HostSettings
from innkeeper.store.memory import MemoryStore
from innkeeper.store.repo import Repo

VMS = 100
SHARE = Budget(2)
# As a QEMU with two vCPUs has them.
_THREADS = ("CPU 0/TCG", "CPU 1/TCG", "IO disks", "IO mon_iothread", "worker", "worker")
# argv: how many processes. Says their pids; each ends with its parent (PR_SET_PDEATHSIG is 1).
_PROGRAM = f"""
import ctypes, os, signal, sys, threading, time
def named(name):
    open("/proc/thread-self/comm", "w").write(name)
    time.sleep(3600)
for _ in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        for name in {_THREADS!r}:
            threading.Thread(target=named, args=(name,), daemon=True).start()
        time.sleep(3600)
    print(pid, flush=True)
time.sleep(3600)
"""


def run(lab: Lab) -> list[Sample]:
    count, seconds = lab.count(VMS, 20), lab.count(60, 6)
    with _processes(count) as pids:
        share, looks = asyncio.run(_sampled(lab.directory / "sampling", pids, seconds))
    ours, theirs = asyncio.run(_asked(lab.directory / "asked", lab.count(300, 30)))
    asking = (ours + theirs) / 1000 / COUNTERS.active_s * count * 100
    active = sum(looks) / len(looks) / 1000 / INTERVAL_S * 100 + asking
    return [
        Sample(f"sampling.cpu-{count}", "%", [share], SHARE, f"{count} quiet VMs, over {seconds} s"),
        Sample(f"sampling.look-{count}", "ms", looks, None, f"reading all, every {INTERVAL_S:g} s"),
        Sample("sampling.ask", "ms", [ours], note="CPU time of asking one QEMU for its counters, our side"),
        Sample("sampling.ask-qemu", "ms", [theirs], note="the same, QEMU's side"),
        Sample(
            f"sampling.cpu-{count}-active", "%", [active], SHARE,
            f"if all do something: look / {INTERVAL_S:g} s + {count} x both asks / {COUNTERS.active_s:g} s",
        ),
        Sample("sampling.walk-1gib", "ms", _walks(lab.count(20, 3)), None, "page tables of 1 GiB"),
        Sample("sampling.history", "kB", [_history_kb()], Budget(90), "of a day of a VM with two vCPUs"),
    ]  # fmt: skip


@contextlib.contextmanager
def _processes(count: int) -> Iterator[list[int]]:
    parent = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(count)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(count)]
        time.sleep(1.0)  # until their threads have names
        yield pids
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()


class _Host:
    name, boot_id, settings = "bench", "bench", HostSettings()

    def qemu(self, architecture: str = "x86_64") -> QemuView:
        raise NotImplementedError

    def memory_available_bytes(self) -> int:
        return 1 << 40

    def hugepages_free(self, page_bytes: int) -> int:
        return 0

    def numa(self) -> tuple[HostNode, ...]:
        return ()


def _context(state: Path, pids: list[int]) -> Context:
    paths, engine = Paths(state, state / "run"), FakeEngine()
    make_private_dir(paths.instances)
    store = MemoryStore()
    ctx = Context(paths, SystemRunner(), engine, Repo(store), SystemClock(), _Host())
    for index, pid in enumerate(pids):
        uid, name = str(uuid.UUID(int=index)), f"vm-{index:03}"
        spec = InstanceSpec.model_validate({"boot": {"kernel": "/boot/vmlinuz"}})
        ctx.records[name] = InstanceRecord(
            name=name, uid=uid, created_at=0.0, host="bench", spec=spec, wanted=Wanted(generation=1)
        )
        ctx.statuses[uid] = InstanceStatus(state=State.RUNNING, accelerator="tcg", pid=pid)
        plan = LaunchPlan(uid, name, 1, "qemu", "q35", "tcg", "max", 2, 32 << 20)
        make_private_dir(paths.instance(uid).directory)
        ctx.running[uid] = Running(FakeMachine(plan, engine, pid), uid, GuestAgent(state / "none"))
    return ctx


async def _sampled(state: Path, pids: list[int], seconds: float) -> tuple[float, list[float]]:
    """The share of a core that the whole loop takes, and the CPU time of single readings."""
    sampler = Sampler(_context(state, pids))
    loop = asyncio.create_task(sampler.run())
    await asyncio.sleep(INTERVAL_S + 2)  # opened, asked once
    begun, before = time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    share = (time.process_time() - before) / (time.monotonic() - begun) * 100
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    looks = []
    for _ in range(max(5, int(seconds / 3))):
        await asyncio.sleep(0.2)
        before = time.process_time()
        await sampler.look()
        looks.append((time.process_time() - before) * 1000)
    await sampler.close()
    return share, looks


async def _asked(state: Path, count: int) -> tuple[float, float]:
    """CPU milliseconds of one question for counters, on our side and on QEMU's."""
    make_private_dir(state)
    disk = state / "disk"
    disk.write_bytes(bytes(1 << 20))
    plan = LaunchPlan(
        uid=str(uuid.uuid4()),
        name="asked",
        epoch=1,
        binary=which("qemu-system-x86_64") or "qemu-system-x86_64",
        machine="q35",
        accelerator="tcg",
        cpu_model="max",
        cpus=2,
        memory_bytes=32 << 20,
        disks=(DiskPlan("root", (Layer(disk, "raw"),)),),
        vga="none",
        paused=True,  # so that all its CPU time is for answers
        console_log=state / "console.log",
        qemu_log=state / "qemu.log",
    )
    machine = await QemuEngine(SystemRunner(), SystemClock()).launch(plan, RuntimeFiles(state / "run"), None)
    try:
        await machine.counters()
        reader = ProcessReader(machine.pid, Descriptors(), Path("/proc"))
        theirs, ours = reader.sample(0.0).cpu_s, time.process_time()
        for _ in range(count):
            await machine.counters()
        ours, theirs = time.process_time() - ours, reader.sample(0.0).cpu_s - theirs
        reader.close()
    finally:
        await machine.kill()
        await machine.detach()
    return ours / count * 1000, theirs / count * 1000


def _walks(count: int) -> list[float]:
    """smaps_rollup of ourselves with a gibibyte of small pages."""
    memory = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(0, 1 << 30, mmap.PAGESIZE):
            memory[page] = 1
        reader = ProcessReader(os.getpid(), Descriptors())
        values = []
        for _ in range(count):
            begun = time.perf_counter()
            reader.footprint()
            values.append((time.perf_counter() - begun) * 1000)
        reader.close()
        return values
    finally:
        memory.close()


def _history_kb() -> float:
    chance, history = Random(1), History()
    names = (
        "cpu",
        "wait",
        "vcpu0",
        "vcpu1",
        "resident",
        "private",
        "shared",
        "minor_faults",
        "disk_read",
        "disk_write",
    )
    for minute in range(26 * 60):
        now = 1_700_000_000.0 + 60 * minute
        history.add(now, 60.0, {name: chance.random() * 1e6 for name in names} | {"swapped": 0.0})
    return history.size_bytes / 1000
