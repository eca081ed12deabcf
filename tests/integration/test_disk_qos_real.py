"""Limits of disks kept under real guests: measured by QEMU's own counters, changed while they read."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from vms.daemon import Daemon
from vms.forks import Guest

pytestmark = pytest.mark.vm
FreshDaemon = Callable[..., Daemon]
DISKS = [
    {"name": "a", "size": "64MiB", "qos": {"read_bytes": "2MiB/s", "write_ops": 20}},
    {"name": "b", "size": "64MiB"},
]
# As fast as it can, one request at a time, for as long as the guest runs.
READER = "(while dd if=/dev/{} of=/dev/null bs=4k count=4096 iflag=direct; do :; done) >/dev/null 2>&1 &"
FASTER = 1.1  # what a moment more or less between two looks may make of a rate


def reads(guest: Guest) -> tuple[float, dict[str, int]]:
    """When, and how many requests QEMU has counted by then of each disk."""
    at = time.monotonic()
    found = guest.instance.inspect_disk()["disks"]
    return at, {one["name"]: one["reads"]["requests"] for one in found}


def reads_per_second(guest: Guest, at_least: int) -> float:
    """Of all its disks together, while each does at least so many."""
    begun, before = reads(guest)
    while True:
        now, after = reads(guest)
        done = [after[name] - before[name] for name in before]
        if min(done) >= at_least:
            return sum(done) / (now - begun)
        assert now < begun + 60, f"{guest.name} did only {done}"


def seconds(guest: Guest, command: str) -> float:
    """How long it took by the guest's own clock."""
    said = guest.sh(f"read a x </proc/uptime; {command} 2>/dev/null; read b x </proc/uptime; echo $a $b")
    begun, ended = said.split()
    return float(ended) - float(begun)


def test_limits_of_real_disks(fresh: FreshDaemon) -> None:
    daemon = fresh(images=True)
    spec = {"image": "tiny", "networks": [], "memory": {"size": "128MiB"}, "disks": DISKS}
    daemon.client.instances.create(spec, name="lim", start=True, wait="ready")
    guest = Guest(daemon, "lim")
    held = daemon.status("lim")["disk_limits"]
    assert held["a"]["read_bytes"] == "2MiB/s" and held["b"] is None
    # From the start: 4 MiB take two seconds, and 40 writes, too. A busy host makes it longer, never shorter.
    assert seconds(guest, "dd if=/dev/vda of=/dev/null bs=64k count=64 iflag=direct") > 1.7
    assert seconds(guest, "dd if=/dev/zero of=/dev/vda bs=4k count=40 oflag=direct") > 1.7
    # Another limit holds for what waits already: at 1 KiB/s these reads would take two minutes.
    daemon.inn("set", "lim", "disks.0.qos=", "qos.disk.total_bytes=1KiB/s").ok()
    guest.sh("(dd if=/dev/vdb of=/dev/null bs=64k count=2 iflag=direct; touch /read) >/dev/null 2>&1 &")
    begun = time.monotonic()
    daemon.inn("set", "lim", "qos.disk.total_bytes=", "qos.disk.total_ops=50/s").ok()
    guest.sh("until [ -e /read ]; do sleep 0.02; done")
    assert time.monotonic() - begun < 30
    assert "50/s total, shared" in daemon.inn("show", "lim").ok().out

    # Both disks share one limit; inspection says that it is this which holds them back.
    for disk in ("vda", "vdb"):
        guest.sh(READER.format(disk))
    assert reads_per_second(guest, 40) < 50 * FASTER
    assert held_back(guest), "never seen to be held back"
    # A copy has them, and so has the VM itself after that, and after its daemon was killed.
    guest.instance.fork(name="copy")
    daemon.kill()
    daemon.start()
    for name in ("lim", "copy"):
        held = daemon.status(name)["disk_limits"]
        assert [(one["total_ops"], one["shared"]) for one in held.values()] == [("50/s", True)] * 2
        assert reads_per_second(Guest(daemon, name), 30) < 50 * FASTER
    daemon.client.instances.handle("copy").remove(force=True)
    daemon.inn("set", "lim", "qos.disk=").ok()
    assert daemon.status("lim")["disk_limits"] == {"a": None, "b": None}
    assert reads_per_second(guest, 200) > 50 * FASTER


def held_back(guest: Guest) -> bool:
    """A busy host may now and then keep the guest from using all that it may."""
    for _ in range(20):
        found = guest.instance.inspect_disk()["disks"]
        assert all(one["throttle"] == {"total_ops": 50} and one["throttle_shared"] for one in found)
        if any(one["held_back_by"] == ["total_ops"] for one in found):
            return True
    return False


def test_what_cannot_be_is_refused_in_words(daemon: Daemon, created: str) -> None:
    for fields, told in {
        ("disks.3.qos.read_bytes=1MiB/s",): "No such disk",
        ("qos.disk.read_bytes=-1MiB/s",): "Not a rate",
        ("qos.disk.read_bytes=5",): "a unit missing",
        ("qos.disk.read_bytes=5000TiB/s",): "more than any disk does",
        ("qos.disk.total_ops=many",): "operations per second",
        ("qos.disk.total_ops=5", "qos.disk.read_ops=5"): "leave out it or read_ops",
        ("qos.disk.total_ops=5", "qos.disk.total_ops_burst=4"): "is less than total_ops",
        ("qos.disk.readbytes=5",): "did you mean read_bytes",
    }.items():
        refused = daemon.inn("set", created, *fields).failed(2, told)
        assert "Traceback" not in refused.err and len(refused.err.splitlines()) == 1
    assert "qos" not in daemon.inn("show", created, "--yaml").ok().out
