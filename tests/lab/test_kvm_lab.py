"""An unmodified Debian kernel under real KVM, with nested paging and with shadow page tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from vms import labhost
from vms.daemon import Daemon
from vms.labhost import Paging

ZEROES = hashlib.sha256(bytes(3_000_000)).hexdigest()


@pytest.fixture(scope="module")
def guest(host: Daemon) -> Iterator[str]:
    """A VM whose accelerator was left to the daemon."""
    host.client.instances.create({"image": "tiny"}, name="guest", start=True, wait="ready")
    yield "guest"
    host.client.instances.handle("guest").remove(force=True)


def sh(host: Daemon, script: str, name: str = "guest") -> str:
    done = host.client.instances.handle(name).exec(["sh", "-ec", script], timeout_s=60)
    assert done.status == 0, done.stderr
    return done.stdout.decode().strip()


def test_the_doctor_finds_kvm_usable(host: Daemon) -> None:
    (found,) = [one for one in host.inn("doctor", "--json").json if one["name"] == "kvm"]
    assert found["verdict"] == "ok", found
    assert "hardware speed" in found["detail"]


def test_the_host_says_who_translates_addresses(host: Daemon, paging: Paging) -> None:
    facts = host.client.host.show()["facts"]
    assert facts["kvm"] == "hardware"
    assert facts["paging"] == paging
    assert f"paging:{'':18}{paging}" in host.inn("host", "show").ok().out


def test_an_unmodified_kernel_runs_under_kvm(host: Daemon, guest: str) -> None:
    assert host.status(guest)["accelerator"] == "kvm"
    assert "Hypervisor detected: KVM" in sh(host, "dmesg")
    assert "Debian" in sh(host, "uname -v")
    assert "kvm-clock" in sh(host, "cat /sys/devices/system/clocksource/clocksource0/available_clocksource")


def test_exits_are_counted(host: Daemon, guest: str) -> None:
    pid = host.status(guest)["pid"]
    before = labhost.kvm_counts(pid)
    sh(host, "i=0; while [ $i -lt 200 ]; do echo $i >/dev/ttyS0; i=$((i+1)); done")
    after = labhost.kvm_counts(pid)
    # Each byte for a serial port is an I/O exit: over 600 characters were written.
    assert after["io_exits"] - before["io_exits"] > 600
    assert after["exits"] - before["exits"] >= after["io_exits"] - before["io_exits"]


def test_who_meets_the_page_faults_of_the_guest(host: Daemon, guest: str, paging: Paging) -> None:
    """With nested paging a guest's own page faults never leave it; shadow page tables must see each."""
    pid = host.status(guest)["pid"]
    before = labhost.kvm_counts(pid)["pf_guest"]
    sh(host, "i=0; while [ $i -lt 20 ]; do true | cat; i=$((i+1)); done")
    told = labhost.kvm_counts(pid)["pf_guest"] - before
    assert (told > 100) if paging == "shadow" else (told == 0), told


def test_a_fork_runs_on(host: Daemon, guest: str) -> None:
    """In either mode; all the rest about forks is in test_fork_lab.py."""
    sh(host, "echo before >/mark")
    host.client.instances.handle(guest).fork(name="copy")
    try:
        sh(host, "echo after >/mark")
        assert sh(host, "cat /mark", "copy") == "before"
        assert sh(host, "head -c 3000000 /dev/zero | sha256sum", "copy").split()[0] == ZEROES
        assert sh(host, "cat /mark") == "after"
    finally:
        host.client.instances.handle("copy").remove(force=True)


def test_two_vcpus_compute_what_is_right(host: Daemon) -> None:
    host.client.instances.create({"image": "tiny", "cpu": {"count": 2}}, name="two", start=True, wait="ready")
    try:
        script = "head -c 3000000 /dev/zero | sha256sum"
        both = sh(host, f"nproc; ({script}) & {script}; wait", "two").split("\n")
        assert both[0] == "2"
        assert both[1:] == [f"{ZEROES}  -"] * 2
    finally:
        host.client.instances.handle("two").remove(force=True)
