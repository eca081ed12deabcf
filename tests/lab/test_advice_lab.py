"""Advice that only a host with two nodes and KVM can follow: where memory lies, and in which pages."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from innkeeper.agent import sysfs
from innkeeper.spec.memory import THP_OF_FILES
from innkeeper.units import GiB, MiB
from vms import labhost
from vms.daemon import Daemon
from vms.forks import Guest
from vms.waiting import eventually

Json = dict[str, Any]
NODES = [node for node in sysfs.numa_nodes() if node.cpus and node.memory_bytes]
SHORT = ("--window", "20s", "--min-data", "10s")


@pytest.fixture
def booted(plain_host: Daemon) -> Iterator[Callable[..., Guest]]:
    names = []

    def boot(name: str, **memory: Any) -> Guest:
        names.append(name)
        spec = {"image": "tiny", "networks": [], "memory": {"prealloc": True} | memory}
        plain_host.client.instances.create(spec, name=name, start=True, wait="ready")
        guest = Guest(plain_host, name)
        guest.sh("(while :; do :; done) </dev/null >/dev/null 2>&1 &")
        return guest

    yield boot
    for name in names:
        plain_host.client.instances.handle(name).remove(force=True)


def said(guest: Guest, kind: str, *reasons: str) -> Json | None:
    """What is said of this kind, whether it is advice or why there is none."""
    found = guest.daemon.inn("advise", guest.name, *SHORT, "--json").ok().json
    every = [*found["advice"], *found["withheld"]]
    return next((one for one in every if one["kind"] == kind and one["reason"] in reasons), None)


@pytest.mark.skipif(len(NODES) < 2, reason="needs two NUMA nodes with CPUs and memory: make lab")
def test_vcpus_go_to_the_node_of_their_memory(booted: Callable[..., Guest]) -> None:
    """Somebody has put the VM's threads on the CPUs of another node, as a careless taskset does."""
    guest = booted("far", size="192MiB")
    pid = int(guest.daemon.status("far")["pid"])
    (home,) = labhost.ram_pages_by_node(pid)
    here, there = sorted(NODES, key=lambda node: node.id != home)[:2]
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), there.cpus)
    found = eventually(lambda: said(guest, "numa", "remote"), "its memory is far", 30.0, 1.0)
    cpus = ",".join(map(str, here.cpus))
    assert found["change"] == {"cpu.pin": {"0": cpus}} and found["live"], found
    assert f"to node {home}" in found["what"]
    guest.daemon.inn(*shlex.split(found["command"])[1:]).ok()  # as it is printed
    assert labhost.vcpu_places(pid) == [set(here.cpus)]
    assert set(labhost.ram_pages_by_node(pid)) == {home}


def test_huge_pages_for_a_large_busy_guest(booted: Callable[..., Guest]) -> None:
    """None that would keep it from its next start; then the host makes them, and it lies in them."""
    mode = Path("/") / THP_OF_FILES
    before = sysfs.chosen(mode.read_text())
    mode.write_text("never")
    try:
        guest = booted("large", size="1GiB")
        withheld = eventually(lambda: said(guest, "pages", "host"), "no huge pages here", 30.0, 1.0)
        assert "echo advise" in withheld["what"], withheld
        mode.write_text("advise")
        found = eventually(lambda: said(guest, "pages", "small-pages"), "the host makes them now", 30.0, 1.0)
        assert found["change"] == {"memory.thp": "always"} and not found["live"], found
        guest.daemon.inn(*shlex.split(found["command"])[1:]).ok()
        guest.daemon.inn("restart", "large").ok()
        pid = int(guest.daemon.status("large")["pid"])
        huge = labhost.memory_kib(pid, "ShmemPmdMapped", "innkeeper-ram") << 10
        assert huge > 0.9 * GiB, f"{huge // MiB} MiB in huge pages"
    finally:
        mode.write_text(before)
