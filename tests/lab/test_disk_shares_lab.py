"""Shares of a disk under cgroup v2, by BFQ, on a disk of memory (null_blk) whose scheduler may be chosen.

All of a daemon lies on it, so that the lab's own disk stays as it is.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from vms import labhost, templates
from vms.daemon import Daemon, short_directory
from vms.waiting import eventually

SLOW: Final = "slow"  # the kernel names the device after its folder
SCHEDULER: Final = Path(f"/sys/block/{SLOW}/queue/scheduler")


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def slow_disk() -> Iterator[Path]:
    """Where it is mounted."""
    run("modprobe", "null_blk", "nr_devices=0")
    run("modprobe", "bfq")
    if not Path("/sys/kernel/config/nullb").exists():
        run("mount", "-t", "configfs", "none", "/sys/kernel/config")
    device, place = Path("/sys/kernel/config/nullb") / SLOW, short_directory()
    device.mkdir()
    for name, value in {"size": 256, "memory_backed": 1, "power": 1}.items():
        (device / name).write_text(str(value))
    SCHEDULER.write_text("none")
    run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "nodiscard", f"/dev/{SLOW}")
    run("mount", f"/dev/{SLOW}", str(place))
    try:
        yield place
    finally:
        run("umount", "--lazy", str(place))
        (device / "power").write_text("0")
        device.rmdir()
        place.rmdir()


@pytest.fixture(scope="module")
def host(slow_disk: Path, tiny_image: Path) -> Iterator[Daemon]:
    state = slow_disk / "s"
    state.mkdir(mode=0o700)
    daemon = Daemon(state)
    try:
        templates.register(daemon.state, "tiny", tiny_image)
        daemon.start()
        daemon.checked = True
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(scope="module")
def group(host: Daemon) -> Iterator[Path]:
    """That of a guest."""
    spec = {"image": "tiny", "networks": [], "memory": {"size": "128MiB"}}
    vm = host.client.instances.create(spec, name="web", start=True, wait="ready")
    yield labhost.cgroup_of(int(host.status("web")["pid"]))
    vm.remove(force=True)


def shares_kept(host: Daemon) -> None:
    told = host.client.host
    eventually(lambda: not told.show()["facts"]["qos"]["io"], "the host says that it keeps shares", 30)


def test_bfq_knows_the_weights(host: Daemon, group: Path) -> None:
    host.inn("set", "web", "qos.disk.shares=high").failed(4, f"echo bfq > {SCHEDULER}")
    SCHEDULER.write_text("bfq")
    shares_kept(host)
    host.inn("set", "web", "qos.disk.shares=high").ok()
    assert (group / "io.bfq.weight").read_text().split()[-1] == "200"
    SCHEDULER.write_text("none")
