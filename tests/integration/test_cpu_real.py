"""The processors of real guests, by their own view."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vms.daemon import Daemon
from vms.forks import Guest, assert_nothing_remains

pytestmark = pytest.mark.vm


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


def allowed(pid: int) -> dict[str, str]:
    """CPUs of the host by name of thread."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        found[lines["Name"].strip()] = lines["Cpus_allowed_list"].strip()
    return found


def test_threads_are_named_and_pinned_also_after_a_fork(host: Daemon, vm: Guest) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    every, last = allowed(os.getpid()).popitem()[1], str(cpus[-1])
    inn = host.inn
    inn("set", "grows", "cpu.count=2", f"cpu.pin.1={last}", f"cpu.emulator={cpus[0]}").ok()
    expected = {"CPU 0/TCG": every, "CPU 1/TCG": last, "IO disks": str(cpus[0])}
    assert allowed(host.status("grows")["pid"]).items() >= expected.items()
    inn("fork", "grows", "--name", "pinned").ok()  # another process is the VM now
    for name in ("grows", "pinned"):
        assert allowed(host.status(name)["pid"]).items() >= expected.items()
    Guest(host, "pinned").remove()
    assert f"vCPU 1 to {last}" in inn("show", "grows").ok().out
    inn("set", "grows", "cpu.count=1", "cpu.pin.1=", "cpu.emulator=").ok()
    assert set(allowed(host.status("grows")["pid"]).values()) == {every}


def test_a_cpu_the_host_lacks_is_refused(host: Daemon, vm: Guest) -> None:
    host.inn("set", "grows", "cpu.pin.0=4095").failed(4, "pinned to CPU 4095")
    assert host.show("grows")["spec"]["cpu"]["pin"] == {}
    host.inn("create", "tiny", "--name", "bad", "--cpu-pin", "0=4095").failed(4, "pinned to CPU 4095")
    host.inn("create", "tiny", "--name", "bad", "--cpu-pin", "0=x").failed(2, "not a list of CPUs")
    assert "bad" not in host.names()


# -- models and flags ----------------------------------------------------------------------------------


def test_the_catalogue_is_what_qemu_and_its_guests_say(host: Daemon) -> None:
    catalogue = host.client.host.cpu_models("tcg")
    models = {model["name"]: model for model in catalogue["models"]}
    assert models["x86-64-v2"]["runnable"] and models["max"]["runnable"]
    assert models["max"]["flags"] == catalogue["flags"]
    assert "avx512f" in models["Skylake-Server"]["missing"] and not models["Skylake-Server"]["runnable"]
    assert host.client.host.cpu_models("tcg", "x86-64-v4")["models"][0]["missing"][0] == "avx512f"
    shown = host.inn("cpu", "models", "--accel", "tcg").ok().out
    assert "x86-64-v2" in shown and "Skylake-Server" not in shown
    assert "Skylake-Server" in host.inn("cpu", "models", "--accel", "tcg", "--all").ok().out
    host.inn("cpu", "models", "no-such-cpu", "--accel", "tcg").failed(4, "no CPU model no-such-cpu")


def test_a_guest_has_the_model_and_flags_it_was_given(host: Daemon) -> None:
    host.inn(
        *("run", "tiny", "-d", "--name", "level", "--network", "none"),
        *("--cpu-model", "x86-64-v2", "--cpu-feature", "+aes", "--cpu-feature=-popcnt"),
    ).ok()
    level = Guest(host, "level")
    flags = set(level.sh("grep -m1 ^flags /proc/cpuinfo").split())
    assert {"cx16", "lahf_lm", "pni", "ssse3", "sse4_1", "sse4_2", "aes"} <= flags
    assert not {"popcnt", "avx", "avx2"} & flags
    level.remove()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cpu-model", "x86-64-v4"), "needs avx512f, avx512bw, avx512cd, avx512dq, avx512vl, which QEMU"),
        (("--cpu-feature", "+avx512f"), "needs avx512f, which QEMU"),
        (("--cpu-feature", "+warp9"), "knows no CPU flag warp9"),
        (("--cpu-model", "host"), "takes KVM"),
        (("--paravirt", "hyperv"), "takes KVM"),
    ],
)
def test_flags_that_cannot_be_had_are_named(host: Daemon, options: tuple[str, ...], said: str) -> None:
    host.inn("create", "tiny", "--name", "bad", "--accel", "tcg", *options).failed(4, said)
    assert "bad" not in host.names()
