"""The file system of the state directory is full: verbs say so, nothing is half made, and all works
again when there is room. Guests that write to a full host stand still instead of failing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vms import traces
from vms.daemon import Daemon, short_directory
from vms.waiting import eventually

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system"),
]

Spec = Callable[..., dict[str, Any]]
Fresh = Callable[..., Daemon]
SIZE_MIB = 320


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A tmpfs of its own."""
    mounted = short_directory()
    options = f"size={SIZE_MIB}m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "inn-test", str(mounted)], check=True)
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)
    mounted.rmdir()


@pytest.fixture
def roomy(small_disk: Path, fresh: Fresh) -> Daemon:
    """A daemon that lives on it."""
    return fresh(state=small_disk / "s")


def _fill(place: Path, leave_bytes: int) -> Path:
    """Until only so much is left."""
    filler = place / "filler"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - leave_bytes))
    return filler


def test_too_little_space_is_refused_before_anything_is_made(
    roomy: Daemon, small_disk: Path, small: Spec, boot_disk: Path
) -> None:
    filler = _fill(small_disk, 20 << 20)
    before = traces.instance_files(roomy.paths)
    answer = roomy.inn("create", str(boot_disk), "--name", "vm", "--memory", "16MiB")
    answer.failed(4, "space")
    assert roomy.names() == [] and traces.instance_files(roomy.paths) == before
    filler.unlink()
    roomy.client.instances.create(small(), name="vm", start=True, wait="running")
    filler = _fill(small_disk, 20 << 20)
    roomy.client.instances.handle("vm").kill()
    roomy.inn("start", "vm").failed(4, "space")
    filler.unlink()
    eventually(lambda: roomy.inn("start", "vm").status == 0, "starts when there is room", 25.0)


def test_a_copy_that_does_not_fit_leaves_nothing(
    roomy: Daemon, tmp_path: Path, boot_disk: Path, small: Spec
) -> None:
    large = tmp_path / "large.img"
    large.write_bytes(boot_disk.read_bytes())
    with large.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, (SIZE_MIB + 50) << 20)
    roomy.inn("create", str(large), "--name", "vm").failed(4, "space")
    assert roomy.names() == [] and not traces.instance_files(roomy.paths)
    roomy.client.instances.create(small(), name="vm", start=True, wait="running")


@pytest.mark.daemon_errors("the store is full")
def test_a_full_disk_is_told_as_such_and_passes(
    roomy: Daemon, small_disk: Path, small: Spec, boot_disk: Path
) -> None:
    roomy.client.instances.create(small(), name="vm", start=True, wait="running")
    before = roomy.qemus()
    filler = _fill(small_disk, 1 << 20)
    _exhaust(small_disk)
    answer = roomy.inn("pause", "vm")
    assert answer.status in (0, 1, 4)
    if answer.status:
        answer.failed(answer.status, "space")
    other = roomy.inn("create", str(boot_disk), "--name", "other", "--memory", "16MiB")
    other.failed(other.status if other.status in (1, 4) else 4, "space")
    assert roomy.names() == ["vm"]
    roomy.inn("list").ok()
    assert roomy.qemus() == before, "a full disk ended a VM"
    filler.unlink()
    (small_disk / "rest").unlink()
    eventually(lambda: roomy.inn("kill", "vm").status == 0, "works again with room", 25.0)
    roomy.inn("rm", "vm").ok()


def _exhaust(place: Path) -> None:
    """To the last byte: the store has no page left either."""
    with (place / "rest").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return


@pytest.mark.slow
def test_a_guest_that_fills_the_host_stands_still_and_goes_on(
    tiny_image: Path, template_state: Path, small_disk: Path, fresh: Fresh
) -> None:
    daemon = fresh(images=True, state=small_disk / "s")
    disks = [{"name": "data", "size": "1GiB"}]
    spec = {"image": "tiny", "disks": disks, "networks": []}
    vm = daemon.client.instances.create(spec, name="vm", start=True, wait="ready")
    filler = _fill(small_disk, 30 << 20)
    vm.exec(
        [
            "sh",
            "-c",
            "(dd if=/dev/zero of=/dev/vda bs=1M count=60 conv=fsync; echo done >/tmp/done) >/dev/null 2>&1 &",
        ]
    )
    paused = daemon.watch("vm", lambda one: one["state"] == "paused", "is paused by the full disk", 40.0)
    assert "disk is full" in paused["note"] and "inn resume vm" in paused["note"]
    daemon.inn("exec", "vm", "--", "true").failed(4, "paused")
    filler.unlink()
    daemon.inn("resume", "vm").ok()
    daemon.inn("exec", "vm", "--", "sh", "-c", "while [ ! -e /tmp/done ]; do usleep 20000; done").ok()
    assert daemon.show("vm")["note"] == ""
