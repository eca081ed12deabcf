"""Run inside the lab by `python -m bench lab`: `python -m lab.measure [--quick]` prints samples as JSON.

Compared are ways to run the same guest on the same emulated host, so that only ratios mean something. Times
of work in a guest are the guest's own, by /proc/uptime, which has hundredths of a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from bench.lib.walker import Pages, walker

from innkeeper.client.instance import Instance
from vms import labhost, templates
from vms.daemon import Daemon, short_directory

SPAN_BYTES: Final = 64 << 20
TURNS: Final = 4_000_000
TURNS_TCG: Final = 400_000
PROCESSES: Final = 60
_SHMEM: Final = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_NODES: Final = Path("/sys/devices/system/node")
_TIMED: Final = "read a b </proc/uptime; $1 >/dev/null; read c d </proc/uptime; echo $a $c"
_FORKING: Final = f"i=0; while [ $i -lt {PROCESSES} ]; do true | cat; i=$((i+1)); done"

Values = dict[str, list[float]]


class Measuring:
    """Collects values by name, and makes the JSON of bench.lib.sample.Sample of them."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.samples: list[dict[str, Any]] = []

    def add(self, name: str, unit: str, values: list[float], note: str) -> None:
        self.samples.append({"name": f"lab.{name}", "unit": unit, "values": values, "note": note})
        print(f"{name}: {', '.join(f'{one:.3g}' for one in values)} {unit}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.measure")
    parser.add_argument("--quick", action="store_true")
    measuring = Measuring(1 if parser.parse_args().quick else 4)
    for paging in ("npt", "shadow"):
        labhost.reload_kvm("npt" if paging == "npt" else "shadow")
        with _daemon() as daemon:
            _under_kvm(measuring, daemon, paging)
            if paging == "npt":
                _host_pages(measuring, daemon)
                _under_tcg(measuring, daemon)
    labhost.reload_kvm("npt")
    _nodes(measuring)
    print(json.dumps(measuring.samples))
    return 0


@contextmanager
def _daemon() -> Iterator[Daemon]:
    """A daemon that met this KVM, and knows the tiny image that was brought along."""
    daemon = Daemon(short_directory())
    try:
        templates.register(daemon.state, "tiny", Path(os.environ[labhost.IN_LAB]))
        daemon.start()
        yield daemon
    finally:
        daemon.close()


@contextmanager
def _guest(daemon: Daemon, accelerator: str) -> Iterator[tuple[Instance, float]]:
    """A ready guest, and how long its boot took in milliseconds."""
    spec = {"image": "tiny", "machine": {"accelerator": accelerator}, "networks": []}
    begun = time.monotonic()
    vm = daemon.client.instances.create(spec, name="guest", start=True, wait="ready", timeout_s=600)
    took_ms = (time.monotonic() - begun) * 1000
    try:
        yield vm, took_ms
    finally:
        vm.remove(force=True)


def _timed_s(vm: Instance, script: str) -> float:
    """By the guest's own clock."""
    vm.write_file("/work", script.encode(), mode=0o755)
    done = vm.exec(["sh", "-ec", _TIMED, "sh", "/work"], timeout_s=600)
    if done.status != 0:
        raise RuntimeError(f"in the guest: {done.stderr.decode(errors='replace')}")
    begun, ended = map(float, done.stdout.split())
    return ended - begun


def _walk_ns(vm: Instance, pages: Pages, turns: int, rounds: int) -> list[float]:
    """Nanoseconds a step; what setting up the block costs is taken off."""
    for name, count in (("walk", turns), ("idle", 0)):
        vm.write_file(f"/{name}", walker(SPAN_BYTES, count, pages), mode=0o755)
    values = []
    for _ in range(rounds):
        whole, idle = (_timed_s(vm, f"#!/bin/sh\nexec /{name}\n") for name in ("walk", "idle"))
        values.append(max(whole - idle, 0) / turns * 1e9)
    return values


def _fork_ms(vm: Instance, rounds: int) -> list[float]:
    """Milliseconds for a pipe of two processes: page tables made and taken down."""
    return [_timed_s(vm, f"#!/bin/sh\n{_FORKING}\n") / PROCESSES * 1000 for _ in range(rounds)]


def _under_kvm(measuring: Measuring, daemon: Daemon, paging: str) -> None:
    boots = []
    for turn in range(measuring.rounds):
        with _guest(daemon, "kvm") as (vm, took_ms):
            boots.append(took_ms)
            if turn < measuring.rounds - 1:
                continue
            for pages in ("small", "huge"):
                steps = _walk_ns(vm, "small" if pages == "small" else "huge", TURNS, measuring.rounds)
                measuring.add(f"step-{paging}-{pages}", "ns", steps, f"KVM, {paging}; guest pages {pages}")
            forks = _fork_ms(vm, measuring.rounds)
            measuring.add(f"fork-{paging}", "ms", forks, f"KVM, {paging}: two processes and a pipe")
    measuring.add(f"boot-{paging}", "ms", boots, f"KVM, {paging}: create to ready")


def _host_pages(measuring: Measuring, daemon: Daemon) -> None:
    """Guest RAM on the host in transparent huge pages: the guest's memory file gets them when asked to."""
    before = _SHMEM.read_text().partition("[")[2].partition("]")[0]
    try:
        _SHMEM.write_text("always")
        with _guest(daemon, "kvm") as (vm, _):
            pid = int(vm.refresh().data["status"]["pid"])
            for pages in ("small", "huge"):
                steps = _walk_ns(vm, "small" if pages == "small" else "huge", TURNS, measuring.rounds)
                huge_mib = labhost.memory_kib(pid, "ShmemPmdMapped") >> 10
                if not huge_mib:  # then it would be a comparison of a thing with itself
                    print("the host gave no huge pages: not measured", file=sys.stderr, flush=True)
                    return
                measuring.add(
                    f"step-npt-{pages}-on-thp",
                    "ns",
                    steps,
                    f"guest RAM in huge pages ({huge_mib} MiB mapped so)",
                )
    finally:
        _SHMEM.write_text(before)


def _under_tcg(measuring: Measuring, daemon: Daemon) -> None:
    """Emulation inside of emulation."""
    with _guest(daemon, "tcg") as (vm, took_ms):
        measuring.add("boot-tcg", "ms", [took_ms], "TCG in the lab: create to ready")
        steps = _walk_ns(vm, "small", TURNS_TCG, measuring.rounds)
        measuring.add("step-tcg-small", "ns", steps, "TCG in the lab; guest pages small")
        measuring.add("fork-tcg", "ms", _fork_ms(vm, 1), "TCG in the lab: two processes and a pipe")


def _nodes(measuring: Measuring) -> None:
    """Steps of the same program on the lab itself, with its memory on its own node and on another."""
    nodes = sorted(path.name[4:] for path in _NODES.glob("node[0-9]*"))
    if len(nodes) < 2:
        return
    values: Values = {"local": [], "remote": []}
    programs = {}
    for name, turns in (("walk", TURNS), ("idle", 0)):
        programs[name] = Path(f"/tmp/{name}")
        programs[name].write_bytes(walker(SPAN_BYTES, turns, "small"))
        programs[name].chmod(0o755)
    for _ in range(measuring.rounds):
        for where, node in (("local", nodes[0]), ("remote", nodes[1])):
            took = {}
            for name, program in programs.items():
                begun = time.monotonic()
                argv = ["numactl", f"--cpunodebind={nodes[0]}", f"--membind={node}", str(program)]
                subprocess.run(argv, check=True)
                took[name] = time.monotonic() - begun
            values[where].append(max(took["walk"] - took["idle"], 0) / TURNS * 1e9)
    for where in values:
        measuring.add(
            f"step-node-{where}", "ns", values[where], f"in the lab itself, memory on a {where} node"
        )


if __name__ == "__main__":
    sys.exit(main())
