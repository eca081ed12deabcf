"""`inn clone` with a real guest and a disk it has written to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vms.cli import Inn
from vms.daemon import Daemon

pytestmark = pytest.mark.vm

WRITE = "echo kept | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null"
READ = "head -c 4 /dev/vda; echo; hostname; cat /sys/class/net/eth0/address"


@pytest.fixture
def own(daemon: Daemon) -> Iterator[str]:
    """A name; what bears it is removed at the end."""
    yield "own-vm"
    for name in daemon.names():
        if name.startswith("own-vm"):
            daemon.client.instances.handle(name).remove(force=True)


def test_a_clone_of_a_running_vm_lives_without_it(inn: Inn, daemon: Daemon, own: str) -> None:
    inn("run", "tiny", "--name", own, "--disk", "64MiB", "-d").ok()
    inn("exec", own, "--", "sh", "-c", WRITE).ok()
    findings = inn("explain", "clone", own).ok().out
    assert "power cut" in findings and "room for the copies" in findings
    first = inn("exec", own, "--", "sh", "-c", READ).ok().out.split()
    assert inn("clone", own, f"{own}-copy", "--wait").ok().out == f"{own}-copy\n"
    inn("rm", "--force", own).ok()
    assert not list(daemon.paths.layers.iterdir())
    second = inn("exec", f"{own}-copy", "--", "sh", "-c", READ).ok().out.split()
    assert (first[0], second[0]) == ("kept", "kept") and second[1] == f"{own}-copy"
    assert first[2] != second[2]
    wanted = daemon.show(f"{own}-copy")["wanted"]
    assert wanted["hold"] == "" and not wanted["remove_when_ended"]


def test_what_cannot_be_cloned_leaves_nothing(inn: Inn, daemon: Daemon, created: str) -> None:
    before = daemon.names()
    inn("clone", created, created).failed(4, "There is an instance named")
    inn("clone", "nobody", "two").failed(3, "nobody")
    assert daemon.names() == before
