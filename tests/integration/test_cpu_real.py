"""The processors of real guests, by their own view."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vms import templates
from vms.daemon import Daemon, short_directory
from vms.forks import Guest, assert_nothing_remains

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def host(template_state: Path) -> Iterator[Daemon]:
    """A daemon of these tests: it is killed, and processes of its VMs come and go by their forks."""
    state = short_directory()
    templates.copy_state(template_state, state)
    daemon = Daemon(state).start()
    daemon.checked = True
    try:
        yield daemon
    finally:
        print(f"the daemon's log:\n{daemon.tail()}")  # shown when a test fails
        daemon.close()


@pytest.fixture(scope="module")
def vm(host: Daemon) -> Guest:
    disks = [("--disk", f"64MiB,bus={bus}") for bus in ("virtio", "scsi")]
    host.inn("run", "tiny", "-d", "--name", "grows", *disks[0], *disks[1]).ok()
    return Guest(host, "grows")


def nproc(guest: Guest) -> int:
    return int(guest.sh("nproc"))


def test_vcpus_come_and_go_live(host: Daemon, vm: Guest) -> None:
    """Through a kill of the daemon, a fork, a pause and a snapshot: the guest sees what was asked for."""
    inn, boot = host.inn, vm.boot_id()
    assert nproc(vm) == 1
    inn("set", "grows", "cpu.count=3").ok()
    assert nproc(vm) == host.status("grows")["cpus"] == 3
    host.restart()
    assert host.status("grows")["cpus"] == 3
    inn("fork", "grows", "--name", "copy").ok()
    copy = Guest(host, "copy")
    assert nproc(copy) == nproc(vm) == 3
    inn("set", "grows", "cpu.count=1").ok()
    assert nproc(vm) == host.status("grows")["cpus"] == 1
    inn("set", "copy", "cpu.count=4").ok()
    assert (nproc(vm), nproc(copy)) == (1, 4)
    copy.remove()
    inn("snapshot", "create", "grows", "one").ok()
    inn("set", "grows", "cpu.count=2").ok()
    assert nproc(vm) == 2
    inn("snapshot", "restore", "grows", "one").ok()
    assert nproc(vm) == host.status("grows")["cpus"] == 1
    inn("set", "grows", "cpu.count=2").ok()  # as the spec says already: it went back to the snapshot
    assert nproc(vm) == 2
    inn("pause", "grows").ok()
    assert "when it runs on" in inn("set", "grows", "cpu.count=1").ok().err
    inn("resume", "grows").ok()
    host.watch("grows", lambda seen: seen["status"]["cpus"] == 1, "it has taken up what was asked", 10.0)
    assert nproc(vm) == 1
    assert vm.boot_id() == boot, "all that without a restart"
    inn("snapshot", "rm", "grows", "one").ok()
    assert_nothing_remains(host)


@pytest.mark.skipif(not os.environ.get("INNKEEPER_LONG"), reason="waits 10 s: set INNKEEPER_LONG=1")
def test_a_guest_that_keeps_its_vcpu_is_told_of(host: Daemon, vm: Guest) -> None:
    inn = host.inn
    inn("set", "grows", "cpu.count=2").ok()
    cpu = "/sys/devices/system/cpu/cpu1/online"
    vm.sh(f"echo 1 >/one; mount -o bind /one {cpu}; mount -o remount,ro,bind {cpu}")
    inn("set", "grows", "cpu.count=1").failed(1, "did not take its vCPUs out of use within 10 s", "restart")
    assert nproc(vm) == host.status("grows")["cpus"] == 2
    assert host.status("grows")["failure"]["code"] == "guest_timeout"
    vm.sh(f"umount {cpu}")
    inn("pause", "grows").ok()  # other verbs find nothing in their way
    inn("resume", "grows").ok()
    inn("set", "grows", "cpu.count=1").ok()
    assert nproc(vm) == 1 and host.status("grows")["failure"] is None


def test_more_than_there_is_room_for_waits_for_a_restart(host: Daemon, vm: Guest) -> None:
    said = host.inn("set", "grows", "cpu.count=9").ok().err
    assert "at its next start" in said and "room for 8 vCPUs" in said
    assert nproc(vm) == 1
    host.inn("set", "grows", "cpu.count=1").ok()


def test_killed_while_vcpus_are_parked(host: Daemon, vm: Guest) -> None:
    """The one checkpoint of a live change that takes a guest with an agent; the others are in tests/fault."""
    host.inn("set", "grows", "cpu.count=3").ok()
    host.kill()
    host.start(crash_at="change.parked")
    host.inn("set", "grows", "cpu.count=1")
    assert host.wait_dead() == -9
    host.start()
    host.watch("grows", lambda seen: seen["status"]["cpus"] == 1, "the next daemon ends it", 10.0)
    assert nproc(vm) == 1
    host.inn("set", "grows", "cpu.count=2").ok()
    assert nproc(vm) == 2


def test_topology_is_the_guests_own(host: Daemon) -> None:
    host.inn(
        *("run", "tiny", "-d", "--name", "wide", "--network", "none"),
        # An AMD-like model such as `max` under TCG has no way to tell of threads.
        *("--cpu-model", "Nehalem", "--cpus", "4", "--sockets", "2", "--cores", "1", "--threads", "2"),
    ).ok()
    wide = Guest(host, "wide")
    seen = wide.sh("cat /sys/devices/system/cpu/cpu*/topology/physical_package_id | tr '\\n' ' '")
    assert seen.split() == ["0", "0", "1", "1"]
    assert wide.sh("cat /sys/devices/system/cpu/cpu0/topology/thread_siblings_list") == "0-1"
    wide.remove()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cpus", "5", "--sockets", "1", "--cores", "2", "--threads", "2"), "room for 4 vCPUs, not for 5"),
        (("--cpus", "4", "--max-cpus", "2"), "more than the 2 that cpu.max allows"),
        (("--sockets", "16", "--cores", "16"), "256 vCPUs"),
    ],
)
def test_an_impossible_topology_is_refused(host: Daemon, options: tuple[str, ...], said: str) -> None:
    host.inn("create", "tiny", "--name", "bad", *options).failed(2, said)
    assert "bad" not in host.names()
