"""An unmodified Debian kernel under real KVM, with nested paging and with shadow page tables."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vms import bootables, labhost, monitor, translations
from vms.daemon import Daemon
from vms.labhost import Paging
from vms.waiting import eventually

ZEROES = hashlib.sha256(bytes(3_000_000)).hexdigest()
# Lines of `info tlb` that are walked again: all of a Linux guest's are thousands, and Python is slow here.
COMPARED = 300


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
    assert re.search(rf"^paging: +{paging}$", host.inn("host", "show").ok().out, re.MULTILINE)


def test_an_unmodified_kernel_runs_under_kvm(host: Daemon, guest: str) -> None:
    assert host.status(guest)["accelerator"] == "kvm"
    assert "Hypervisor detected: KVM" in sh(host, "dmesg")
    assert "Debian" in sh(host, "uname -v")
    assert "kvm-clock" in sh(host, "cat /sys/devices/system/clocksource/clocksource0/available_clocksource")


def metrics(host: Daemon, name: str = "guest") -> dict[str, Any]:
    told = host.client.metrics(max_age_s=0.5)["instances"]
    found: dict[str, Any] = next(one for one in told if one["name"] == name)
    return found


def test_exits_are_counted_by_reason(host: Daemon, guest: str) -> None:
    """By KVM itself, and by all that shows its counters: the API, `inn inspect cpu` and `inn top`."""
    pid = host.status(guest)["pid"]
    eventually(lambda: metrics(host)["kvm"], "KVM's counters were read twice", 20.0, every_s=0.5)
    seen = metrics(host)["totals"]["kvm_exits"]
    before = labhost.kvm_counts(pid)
    sh(host, "(while :; do echo 0123456789 >/dev/ttyS0; done) >/dev/null 2>&1 & echo $! >/writing")
    try:
        # Each byte for a serial port is an I/O exit, and nothing else is as frequent.
        rates = eventually(
            lambda: (now := metrics(host)["kvm"]) and now["io_exits"] > 500 and now,
            "the guest's writes show",
            20.0,
            every_s=0.5,
        )
        assert rates["exits"] >= rates["io_exits"]
        shown = host.inn("top", guest, "--once").ok().out
        (line,) = [line for line in shown.splitlines() if line.startswith("KVM")]
        assert "exits/s: io " in line, line
    finally:
        sh(host, "kill $(cat /writing)")
    between = labhost.kvm_counts(pid)
    (cpu,) = host.client.instances.handle(guest).inspect_cpu()["cpus"]
    after = labhost.kvm_counts(pid)
    for name in ("exits", "io_exits", "halt_exits"):
        assert between[name] <= cpu["exits"][name] <= after[name], name
    written = between["io_exits"] - before["io_exits"]
    assert 1000 < written <= between["exits"] - before["exits"]
    eventually(
        lambda: written <= metrics(host)["totals"]["kvm_exits"] - seen, "all of them are in the totals", 20.0
    )


def test_addresses_are_translated_as_qemu_and_the_kernel_say(
    host: Daemon, guest: str, paging: Paging
) -> None:
    """Down to the frame, of a paused guest: the walk through its tables by `info tlb`, `info mem`, gva2gpa
    and gpa2hva, the rest by pagemap. Nobody but us has QEMU's monitor meanwhile."""
    bits = int(sh(host, "grep -m1 'address sizes' /proc/cpuinfo").split(":")[1].split()[0])
    vm = host.client.instances.handle(guest)
    vm.pause()
    try:
        found = [vm.inspect_memory(where) for where in ("rip", "rsp")]
        seen, (cpu,) = vm.inspect_memory(), vm.inspect_cpu()["cpus"]
        shown = host.show(guest)
        host.kill()
        with monitor.connected(host.paths.runtime(shown["uid"]).qmp) as qemu:
            for one in found:
                translations.compare_address(qemu, one)
            state = translations.paging_state(cpu["summary"], bits)
            translations.compare_all(qemu, state, shown["pid"], seen, most=COMPARED)
        for one in found:
            assert one["composed"]["used"] == paging
            translations.compare_frame(shown["pid"], one)
    finally:
        if not host.alive:
            host.start()
        host.client.instances.handle(guest).resume()


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


@pytest.mark.parametrize(
    ("paravirt", "name"),
    # Documentation/virt/kvm/x86/cpuid.rst; Hypervisor Top-Level Functional Specification, 2.4.1
    [("kvm", "KVMKVMKVM..."), ("hyperv", "Microsoft Hv"), ("none", "............")],
)
def test_a_guest_finds_the_hypervisor_it_was_promised(
    plain_host: Daemon, tmp_path: Path, paravirt: str, name: str
) -> None:
    """By the very first instruction that asks. (A Linux that finds both names takes KVM's.)"""
    disk = bootables.boot_disk(tmp_path / "cpuid.img", "cpuid")
    spec = {
        "disks": [{"name": "root", "copy_of": str(disk)}], "networks": [], "memory": {"size": "16MiB"},
        "display": {"vga": "none"}, "cpu": {"paravirt": paravirt},
    }  # fmt: skip
    plain_host.client.instances.create(spec, name="asks", start=True, wait="running")
    try:
        vm = plain_host.client.instances.handle("asks")
        said = eventually(
            lambda: b"".join(vm.logs()).decode().partition(bootables.GREETING)[2].strip(), "it says", 20.0
        )
        assert said == name
    finally:
        plain_host.client.instances.handle("asks").remove(force=True)


def test_two_vcpus_compute_what_is_right(host: Daemon, paging: Paging) -> None:
    """With KVM's own help for a guest that knows it is one; then one of them is taken away and given back."""
    spec = {"image": "tiny", "networks": [], "cpu": {"count": 2, "paravirt": "kvm"}}
    host.client.instances.create(spec, name="two", start=True, wait="ready")
    try:
        script = "head -c 3000000 /dev/zero | sha256sum"
        both = sh(host, f"nproc; ({script}) & {script}; wait", "two").split("\n")
        assert both[0] == "2"
        assert both[1:] == [f"{ZEROES}  -"] * 2
        said = sh(host, "dmesg", "two")
        # arch/x86/kernel/kvm.c and kvmclock.c, as each feature is taken into use
        for words in ("kvm-clock: Using msrs", "PV spinlocks enabled", "setup PV IPIs", "remote TLB flush"):
            assert words in said, said
        for count in (1, 2) if paging == "npt" else ():
            host.inn("set", "two", f"cpu.count={count}").ok()
            assert int(sh(host, "nproc", "two")) == host.status("two")["cpus"] == count
            assert sh(host, script, "two").split()[0] == ZEROES
    finally:
        host.client.instances.handle("two").remove(force=True)
