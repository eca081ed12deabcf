"""Reading processes: real ones for what the kernel does, made-up files for what this host does not have."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers import run
from innkeeper.agent.sampling import rates
from innkeeper.agent.sampling.files import Budget, ProcFile, aside
from innkeeper.agent.sampling.history import History
from innkeeper.agent.sampling.host import HostTracker
from innkeeper.agent.sampling.reader import ProcessReader

# Threads named as QEMU's are: one vCPU that is busy, one that sleeps, an iothread, and a worker.
PROGRAM = """
import sys, threading, time
def named(name, work):
    def begin():
        open("/proc/thread-self/comm", "w").write(name)
        work()
    threading.Thread(target=begin, daemon=True).start()
def spin():
    while True: pass
def rest():
    time.sleep(60)
for name, work in (("CPU 0/TCG", spin), ("CPU 1/TCG", rest), ("IO disks", rest), ("worker", rest)):
    named(name, work)
time.sleep(0.2)
print("up", flush=True)
time.sleep(60)
"""


@contextmanager
def process(program: str = PROGRAM) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("limit", [1000, 0])
def test_threads_have_an_account_of_their_own(limit: int) -> None:
    """The same with descriptors kept open and, where there are none to spare, opened for each reading."""
    before, budget = _open_files(), Budget(limit)
    with process() as child:
        reader = ProcessReader(child.pid, budget)
        first = reader.sample(time.monotonic())
        time.sleep(0.5)
        second = reader.sample(time.monotonic())
        assert (budget.held > 0) == (limit > 0) and _open_files() - before <= budget.held + 2
        found = rates.process_rates(first, second)
        assert found is not None
        used = {one.thread.name: one.used for one in found.threads}
        assert set(used) == {"vcpu0", "vcpu1", "disks", "emulator"}
        assert used["vcpu0"] > 0.05 and used["vcpu1"] < 0.02 and used["disks"] < 0.02
        busy = found.threads[0]
        assert busy.waited is not None and busy.used + busy.waited > 0.8  # it never sleeps
        assert second.rss_bytes > 1 << 20
        footprint = reader.footprint()
        assert 0 < footprint.private_bytes <= footprint.rss_bytes and footprint.pss_bytes > 0
        reader.close()
    assert budget.held == 0 and _open_files() == before


def test_a_process_that_has_gone_is_told_and_leaves_no_descriptor() -> None:
    before, budget = _open_files(), Budget()
    with process() as child:
        reader = ProcessReader(child.pid, budget)
    with pytest.raises(OSError):
        reader.sample(1.0)
    reader.close()
    with pytest.raises(OSError):
        ProcessReader(child.pid, budget)
    assert budget.held == 0 and _open_files() == before


def test_another_process_with_the_same_number_is_not_taken_for_it(tmp_path: Path) -> None:
    """Without descriptors kept open only the start time tells."""
    files = tmp_path / "10"
    (files / "task/10").mkdir(parents=True)
    (files / "task/10/comm").write_text("qemu\n")
    (files / "task/10/schedstat").write_text("1000 5 3\n")
    (files / "statm").write_text("100 50 1 1 0 1 0\n")
    stat = "10 (qemu) S 1 1 1 0 -1 0 1 0 1 0 5 5 0 0 20 0 1 0 {} 0 0" + " 0" * 30
    (files / "stat").write_text(stat.format(700))
    reader = ProcessReader(10, Budget(0), tmp_path)
    assert reader.sample(1.0).started_ticks == 700
    (files / "stat").write_text(stat.format(900))
    with pytest.raises(ProcessLookupError):
        reader.sample(2.0)


def test_a_kernel_without_schedstat_and_a_cgroup_with_a_limit(tmp_path: Path) -> None:
    """Clock ticks instead, waiting not known; throttling and pressure from a cgroup of its own."""
    group = tmp_path / "cgroup/inn/vm"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("usage_usec 1\nthrottled_usec 2000000\n")
    for what in ("cpu", "memory", "io"):
        (group / f"{what}.pressure").write_text("some avg10=0.00 total=3000000\n")
    proc = tmp_path / "proc"
    task = proc / "10/task/11"
    task.mkdir(parents=True)
    (task / "comm").write_text("CPU 0/KVM\n")
    stat = "10 (x) S 1 1 1 0 -1 0 1 0 1 0 250 50 0 0 20 0 1 0 700 0 0" + " 0" * 30
    (task / "stat").write_text(stat)
    (proc / "10/stat").write_text(stat)
    (proc / "10/statm").write_text("100 50 1 1 0 1 0\n")
    (proc / "10/cgroup").write_text("0::/inn/vm\n")
    (proc / "self").mkdir()
    (proc / "self/cgroup").write_text("0::/inn\n")
    (proc / "self/mounts").write_text(f"cgroup2 {tmp_path}/cgroup cgroup2 rw 0 0\n")
    sample = ProcessReader(10, Budget(), proc).sample(1.0)
    assert [(one.thread.name, one.wait_s) for one in sample.threads] == [("vcpu0", None)]
    assert sample.threads[0].run_s == 300 / os.sysconf("SC_CLK_TCK")
    assert sample.throttled_s == 2.0 and sample.pressure == rates.Pressure(3.0, 3.0, 3.0)
    # One that it shares with us says nothing about it.
    (proc / "self/cgroup").write_text("0::/inn/vm\n")
    sample = ProcessReader(10, Budget(), proc).sample(1.0)
    assert (sample.throttled_s, sample.pressure) == (None, None)


def test_a_file_is_closed_once(tmp_path: Path) -> None:
    path, budget = tmp_path / "x", Budget(1)
    path.write_text("1")
    held, opened = ProcFile(str(path), budget), ProcFile(str(path), budget)
    assert budget.held == 1 and held.read() == opened.read() == b"1"
    held.close()
    held.close()
    opened.close()
    assert budget.held == 0


def test_what_hangs_beside_the_loop_is_left_behind() -> None:
    never = threading.Event()

    async def scenario() -> None:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            await aside(never.wait, 0.05)
        assert time.monotonic() - begun < 2.0
        assert await aside(lambda: 7, 5.0) == 7
        with pytest.raises(FileNotFoundError):
            await aside(lambda: os.stat("/nonexistent"), 5.0)
        never.set()
        await asyncio.sleep(0.05)  # its late answer disturbs nobody

    run(scenario())


def test_a_host_without_pressure_accounts(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu0 100 0 0 0 0 0 0 0 0 0\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 400 kB\n")
    host = HostTracker("h", History(), tmp_path)
    host.read(1.0, 1e9)
    (tmp_path / "proc/stat").write_text("cpu0 150 0 0 0 0 0 0 0 0 0\n")
    host.read(2.0, 1e9 + 1)
    told = host.metrics()
    assert told.pressure is None and told.used == 0.5 and told.cpus == 1
    assert told.memory_bytes - told.memory_available_bytes == 600 << 10
    assert host.history.rows(0, 5)[1][-1].average["memory_used"] == 600 << 10
