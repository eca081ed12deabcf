"""Shares of a real disk: a loop device of the test's own, whose I/O scheduler it may choose."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vms.daemon import Daemon, short_directory
from vms.waiting import eventually

SIZE = 512 << 20
CGROUPS = Path("/sys/fs/cgroup")
FreshDaemon = Callable[..., Daemon]
pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system of its own"),
]


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Where it is mounted, and the file that chooses its scheduler; `none` at first."""
    image, place = tmp_path / "image", short_directory()
    with image.open("wb") as file:
        file.truncate(SIZE)
    try:
        device = run("losetup", "--find", "--show", str(image))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no loop device can be had here: {error}")
    try:
        scheduler = Path("/sys/block") / Path(device).name / "queue/scheduler"
        if "bfq" not in scheduler.read_text():
            pytest.skip("this kernel has no BFQ")
        scheduler.write_text("none")
        run("mkfs.ext4", "-q", device)
        run("mount", device, str(place))
        try:
            yield place, scheduler
        finally:
            run("umount", "--lazy", str(place))
    finally:
        run("losetup", "--detach", device)
        place.rmdir()


def weight(uid: str) -> str:
    """Of its group, under either version."""
    files = [*CGROUPS.rglob(f"{uid}/blkio.bfq.weight"), *CGROUPS.rglob(f"{uid}/io.bfq.weight")]
    return files[0].read_text().split()[-1] if files else ""


def test_a_disk_with_bfq(disk: tuple[Path, Path], fresh: FreshDaemon) -> None:
    place, scheduler = disk
    daemon = fresh(images=True, state=place / "s")
    if "no control groups" in str(daemon.client.host.show()["facts"]["qos"]["io"]):
        pytest.skip("this host gives us no control groups for disks")
    spec = {
        "image": "tiny",
        "networks": [],
        "memory": {"size": "128MiB"},
        "disks": [{"name": "data", "size": "1MiB"}],
    }
    daemon.client.instances.create(spec, name="web", start=True, wait="running")
    refused = daemon.inn("set", "web", "qos.disk.shares=high")
    assert refused.status == 4 and "is none, which knows no shares" in refused.err
    assert f"echo bfq > {scheduler}" in refused.err

    scheduler.write_text("bfq")
    eventually(lambda: not daemon.client.host.show()["facts"]["qos"]["io"], "the host is looked at again", 30)
    uid = daemon.show("web")["uid"]
    daemon.inn("set", "web", "qos.disk.shares=high").ok()
    assert weight(uid) == "200"
    assert "2000 shares" in daemon.inn("show", "web").ok().out
    daemon.inn("set", "web", "qos.disk.shares=low").ok()
    assert weight(uid) == "50"

    scheduler.write_text("none")
    eventually(
        lambda: "NOT in force: the scheduler of" in daemon.inn("show", "web").ok().out, "it is said", 30
    )
