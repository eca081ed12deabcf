"""A guest of another architecture: built here, emulated, and as good as any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from innkeeper.drivers.run import which
from vms import templates
from vms.daemon import Daemon, short_directory
from vms.forks import Guest, assert_nothing_remains

PACKAGES = {"qemu-system-aarch64": "qemu-system-arm", "qemu-system-riscv64": "qemu-system-misc"}
MISSING = [f"{name}: apt-get install {package}" for name, package in PACKAGES.items() if which(name) is None]
pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def host(template_state: Path) -> Iterator[Daemon]:
    state = short_directory()
    templates.copy_state(template_state, state)
    templates.register(state, "tiny-arm64", templates.built_image("tiny-arm64"))
    templates.register(state, "tiny-riscv64", templates.built_image("tiny-riscv64"))
    daemon = Daemon(state).start()
    daemon.checked = True
    try:
        yield daemon
    finally:
        print(f"the daemon's log:\n{daemon.tail()}")  # shown when a test fails
        daemon.close()


def test_an_arm_guest_runs_like_any_other(host: Daemon) -> None:
    """Disk, network, agent, serial console, fork, and an end that it is asked for."""
    inn = host.inn
    inn("run", "tiny-arm64", "-d", "--name", "arm", "--cpus", "2", "--disk", "64MiB").ok()
    arm = Guest(host, "arm")
    assert arm.sh("uname -m; nproc").split() == ["aarch64", "2"]
    shown = host.show("arm")
    assert shown["accelerator"] == "tcg" and shown["status"]["machine"].startswith("virt-")
    assert shown["spec"]["machine"]["architecture"] == "aarch64"
    arm.sh("/bin/mke2fs -q -t ext4 /dev/vda && mount /dev/vda /mnt && echo kept >/mnt/file && sync")
    assert "default via" in arm.sh("ip route") or "scope link" in arm.sh("ip route")
    assert b"Innkeeper tiny" in b"".join(arm.instance.logs())
    inn("fork", "arm", "--name", "copy").ok()
    copy = Guest(host, "copy")
    assert copy.sh("hostname; cat /mnt/file").split() == ["copy", "kept"]
    assert arm.sh("hostname") == "arm"
    copy.remove()
    inn("stop", "arm").ok()
    assert host.status("arm")["ended"]["reason"] == "stopped"
    assert_nothing_remains(host)


def test_so_does_a_riscv_guest(host: Daemon) -> None:
    """Its packages may be of a later release than this machine's. QEMU forgets its timers in a fork:
    whoever sleeps in one of the two slept for good in every other run, until they were set again."""
    inn = host.inn
    inn("run", "tiny-riscv64", "-d", "--name", "riscv", "--cpus", "2", "--disk", "64MiB").ok()
    riscv = Guest(host, "riscv")
    assert riscv.sh("uname -m; nproc").split() == ["riscv64", "2"]
    riscv.sh("/bin/mke2fs -q -t ext4 /dev/vda && mount /dev/vda /mnt && echo kept >/mnt/file && sync")
    riscv.sh("/lib/inn/reseed")
    inn("fork", "riscv", "--name", "copy").ok()
    copy = Guest(host, "copy")
    assert copy.sh("hostname; cat /mnt/file; grep -c /mnt /proc/mounts").split() == ["copy", "kept", "1"]
    for guest in (copy, riscv):
        assert guest.sh("for cpu in 0 1; do taskset -c $cpu sleep 0.2; done; echo awake") == "awake"
    copy.remove()
    inn("stop", "riscv").ok()
    assert host.status("riscv")["ended"]["reason"] == "stopped"
    assert_nothing_remains(host)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--accel", "kvm"), 4, "another architecture than the host's are emulated"),
        (("--cpu-model", "x86-64-v2"), 4, "is for x86_64, and this guest is aarch64"),
        (("--firmware", "uefi"), 2, "no UEFI firmware for aarch64"),
        (("--machine", "q35"), 4, "no machine type q35; choose one of: virt"),
        (("--arch", "x86_64"), 2, "is for aarch64, not for x86_64"),
    ],
)
def test_what_such_a_guest_cannot_have(
    host: Daemon, options: tuple[str, ...], status: int, said: str
) -> None:
    host.inn("create", "tiny-arm64", "--name", "bad", *options).failed(status, said)
    assert "bad" not in host.names()
