"""What the daemon costs: memory and idle CPU with 0, 500 stopped and 100 running VMs; re-adoption.

The running VMs are of 32 MiB, without disks: they stand halted in the firmware, which finds nothing to
boot. That is as many VMs for the daemon as any, and cheap enough that 100 of them fit.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from bench.cli import fill
from bench.lib.lab import HALTED, Daemon, Lab, environment, run_quiet
from bench.lib.libvirt import Libvirt, domain, libvirt
from bench.lib.sample import Budget, Sample, timed_ms

RSS = Budget(90)
CPU = Budget(2)
ADOPTION = Budget(1000)
SETTLE_S = 3.0


def run(lab: Lab) -> list[Sample]:
    stopped, running = lab.count(500, 50), lab.count(100, 10)
    idle_s = lab.count(20, 3)
    samples: list[Sample] = []
    with lab.own_daemon("d0") as daemon:
        samples += _idle("0", daemon.pid, idle_s)
    with lab.own_daemon("d500") as daemon:
        fill(daemon, stopped)
        samples += _idle(f"{stopped}-stopped", daemon.pid, idle_s)
    with lab.own_daemon("d100") as daemon:
        _start_all(daemon, running)
        samples += _idle(f"{running}-running", daemon.pid, idle_s, limits=True)
        pids = [instance["pid"] for instance in daemon.client.instances.list_data()]
        vms = sum(_cpu_percent(pids, idle_s)) / running
        samples.append(Sample("daemon.vm-cpu", "%", [vms], note="one such VM's QEMU: the guest is halted"))
        samples += _adoption(lab, daemon, running)
    with libvirt(lab) as peer:
        if peer is not None:
            samples += _libvirts(peer, stopped, running, idle_s)
    return samples


def _start_all(daemon: Daemon, count: int) -> None:
    for index in range(count):
        daemon.client.instances.create(HALTED, name=f"vm-{index:03}", start=True, wait="running")


def _idle(what: str, pid: int, idle_s: float, *, limits: bool = False) -> list[Sample]:
    time.sleep(SETTLE_S)
    rss, pss = _memory_mb(pid)
    (cpu,) = _cpu_percent([pid], idle_s)
    return [
        Sample(f"daemon.rss-{what}", "MB", [rss], RSS if limits else None),
        Sample(f"daemon.pss-{what}", "MB", [pss]),
        Sample(f"daemon.cpu-{what}", "%", [cpu], CPU if limits else None, note=f"of a core, over {idle_s} s"),
    ]


def _adoption(lab: Lab, daemon: Daemon, count: int) -> list[Sample]:
    """Kill -9 and start again, from exec until the API lists all as running."""
    answers, listed = [], []
    for _ in range(lab.count(7, 2)):
        daemon.kill()
        begun = time.perf_counter()
        daemon.start()
        answers.append((time.perf_counter() - begun) * 1000)
        _await_running(daemon, count)
        listed.append((time.perf_counter() - begun) * 1000)
    imports = [timed_ms(_import_daemon) for _ in range(lab.count(7, 2))]
    return [
        Sample(
            "daemon.adopt", "ms", listed, ADOPTION, note=f"kill -9, exec until {count} are listed as running"
        ),
        Sample("daemon.adopt-answer", "ms", answers, note="of these, until the API answers"),
        Sample("daemon.adopt-imports", "ms", imports, note="of these, interpreter and imports alone"),
    ]


def _import_daemon() -> None:
    run_quiet([sys.executable, "-c", "import innkeeper.daemon.main"], environment())


def _await_running(daemon: Daemon, count: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        states = [instance["state"] for instance in daemon.client.instances.list_data()]
        if states.count("running") == count:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {states.count('running')} of {count} were adopted")
        time.sleep(0.005)


def _libvirts(peer: Libvirt, stopped: int, running: int, idle_s: float) -> list[Sample]:
    samples = []
    for what, count, make in (
        ("defined", stopped, peer.define_many),
        ("running", running, peer.create_many),
    ):
        make(
            [
                domain(f"{what}-{index:03}", memory_mib=32, network=False, video=False)
                for index in range(count)
            ]
        )
        time.sleep(SETTLE_S)
        rss, pss = _memory_mb(peer.daemon_pid)
        (cpu,) = _cpu_percent([peer.daemon_pid], idle_s)
        name = f"daemon.libvirtd-{count}-{what}"
        note = f"PSS {pss:.0f} MB, {cpu:.2f} % of a core"
        samples.append(Sample(name, "MB", [rss], note=note))
        peer.remove_all()
    return samples


def _memory_mb(pid: int) -> tuple[float, float]:
    """RSS and PSS (shared pages counted in proportion) of a process, in MB of 1,000,000 bytes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    values = {line.split(":")[0]: line.split()[1] for line in rollup.splitlines()[1:]}
    return int(values["Rss"]) * 1024 / 1e6, int(values["Pss"]) * 1024 / 1e6


def _cpu_percent(pids: list[int], seconds: float) -> list[float]:
    """Share of a core each of them used over the next `seconds`."""
    ticks = os.sysconf("SC_CLK_TCK")
    before, begun = [_cpu_ticks(pid) for pid in pids], time.perf_counter()
    time.sleep(seconds)
    took_s = time.perf_counter() - begun
    return [
        (_cpu_ticks(pid) - earlier) / ticks / took_s * 100 for pid, earlier in zip(pids, before, strict=True)
    ]


def _cpu_ticks(pid: int) -> int:
    # After the command's name, which may contain anything: state is field 3, utime 14, stime 15 (proc(5)).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
