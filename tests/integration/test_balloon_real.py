"""Balloons of real guests: what they give is the host's again, what guests keep stays whole, and RAM that is
shared is never touched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from innkeeper.units import MiB
from vms import monitor
from vms.daemon import Daemon
from vms.forks import Guest
from vms.waiting import eventually

pytestmark = pytest.mark.vm
FreshDaemon = Callable[..., Daemon]
SIZE = 256 * MiB
# All of the RAM is in use once, and free again; some of it is kept.
TOUCH = """
mount -t tmpfs -o size=300m tmpfs /mnt && head -c 20000000 /dev/urandom >/kept
dd if=/dev/zero of=/mnt/all bs=1M count=130 2>/dev/null; rm /mnt/all; sha256sum </kept
"""


def boot(daemon: Daemon, name: str, **memory_qos: Any) -> Guest:
    spec = {"image": "tiny", "networks": [], "memory": {"size": "256MiB"}, "qos": {"memory": memory_qos}}
    daemon.client.instances.create(spec, name=name, start=True, wait="ready")
    return Guest(daemon, name)


def memory(daemon: Daemon, name: str) -> dict[str, Any]:
    """What is known of it, read now."""
    found = daemon.client.metrics(max_age_s=0.2)["instances"]
    return next(dict(one["memory"]) for one in found if one["name"] == name)


def ram_file(pid: int) -> Path:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if "innkeeper-ram" in os.readlink(entry):
            return entry
    raise AssertionError(f"no RAM in pid {pid}")


def backed(daemon: Daemon, name: str) -> int:
    return ram_file(daemon.status(name)["pid"]).stat().st_blocks * 512


def content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


@contextmanager
def by_hand(daemon: Daemon, name: str) -> Iterator[monitor.Monitor]:
    """Its QEMU, while no daemon has it."""
    uid = daemon.show(name)["uid"]
    daemon.kill()
    with monitor.connected(daemon.paths.runtime(uid).qmp) as hand:
        yield hand
    daemon.start()


def left(hand: monitor.Monitor) -> int:
    return int(hand.execute("query-balloon")["actual"])


def test_what_a_balloon_takes_is_the_hosts_and_forks_never_give(fresh: FreshDaemon) -> None:
    daemon = fresh(images=True)
    guest = boot(daemon, "web")
    kept = guest.sh(TOUCH)
    # Not before: a guest that needs more than its limit is ended when it takes it.
    assert daemon.inn("set", "web", "qos.memory.limit=264MiB").ok()
    most = 136 * MiB  # QEMU's 128 MiB are within the limit
    eventually(lambda: memory(daemon, "web")["balloon"] == most, "its balloon is filled", 40.0, every_s=0.3)
    seen = memory(daemon, "web")
    assert seen["balloon_state"] == "follows" and seen["guest_available"] + seen["working_set"] == most
    eventually(lambda: backed(daemon, "web") <= most + MiB, "the host has the rest", 5.0)
    assert guest.sh("sha256sum </kept") == kept
    assert "120M" in daemon.inn("top", "--once").ok().out

    # A daemon that comes later goes on from there.
    daemon.restart()
    assert memory(daemon, "web")["balloon"] in (None, most)

    # Forked with a balloon that is full: parent and copy share RAM, and nothing is taken out of it.
    guest.instance.fork(name="copy")
    copy = Guest(daemon, "copy")
    shared = ram_file(daemon.status("copy")["pid"])
    before = content(shared)
    assert copy.sh("sha256sum </kept") == kept
    with by_hand(daemon, "copy") as hand:
        assert left(hand) == most, "the copy inherits the balloon"
        hand.execute("balloon", value=110 * MiB)  # what we never do: the trap itself
        eventually(lambda: left(hand) <= 112 * MiB, "the guest gave some", 20.0)
    assert content(shared) == before, "nobody took pages out of RAM that others share"
    assert guest.sh("sha256sum </kept") == copy.sh("sha256sum </kept") == kept
    log = Path(daemon.paths.instances, daemon.show("copy")["uid"], "qemu.log").read_text()
    assert "Failed to fallocate" in log, "QEMU did try, and the kernel said no"
    daemon.watch("copy", lambda vm: "shares RAM" in vm["status"]["balloon"], "is said to share RAM", 40.0)

    # What it needs it takes back, into pages of its own; the parent has RAM of its own by and by.
    assert daemon.inn("set", "copy", "qos.memory.balloon=never").ok()
    eventually(lambda: memory(daemon, "copy")["balloon"] in (None, SIZE), "the copy's is empty", 10.0)
    assert copy.sh("dd if=/dev/urandom of=/mnt/more bs=1M count=60 2>/dev/null; sha256sum </kept") == kept
    assert content(shared) == before
    assert guest.sh("sha256sum </kept") == kept
    copy.remove()

    assert daemon.inn("set", "web", "qos.memory.balloon=never").ok()
    eventually(lambda: memory(daemon, "web")["balloon"] == SIZE, "given back", 10.0)
    assert guest.sh("sha256sum </kept") == kept


def test_an_idle_guest_gives_half_of_its_free_memory_while_it_is_short(fresh: FreshDaemon) -> None:
    daemon = fresh(images=True)
    guest = boot(daemon, "web")
    kept = guest.sh(TOUCH)
    seen = daemon.watch(
        "web", lambda vm: memory(daemon, "web")["guest_available"], "tells of its memory", 60.0
    )
    free, took = memory(daemon, "web")["guest_available"], backed(daemon, "web")
    assert seen["status"]["balloon"] == ""
    told = daemon.inn("host", "set", "vms_memory=230MiB").ok()
    assert "230" in told.out
    eventually(
        lambda: memory(daemon, "web")["balloon"] <= SIZE - free // 2, "half of it is taken", 60.0, every_s=0.2
    )
    eventually(lambda: backed(daemon, "web") < took - free // 4, "the host has it", 20.0)
    assert guest.sh("sha256sum </kept") == kept
    daemon.inn("host", "set", "vms_memory=none").ok()
    eventually(lambda: memory(daemon, "web")["balloon"] == SIZE, "all is given back", 20.0, every_s=0.2)
    assert guest.sh("sha256sum </kept") == kept
    for bad in ("vms_memory=much", "vms_memory=-1GiB", "vms_memory=1KiB"):
        daemon.inn("host", "set", bad).failed(2)


def test_a_guest_that_reports_gives_back_what_it_frees(fresh: FreshDaemon) -> None:
    daemon = fresh(images=True)
    guest = boot(daemon, "web", reporting=True, balloon="never")
    kept = guest.sh(TOUCH)
    eventually(lambda: backed(daemon, "web") < 140 * MiB, "what it freed is the host's", 30.0, every_s=0.2)
    assert guest.sh("sha256sum </kept") == kept
    pid = daemon.status("web")["pid"]
    daemon.inn("fork", "web").failed(4, "gives back what it frees")
    assert "qos.memory.reporting=false" in daemon.inn("explain", "fork", "web").out
    assert daemon.status("web")["pid"] == pid and guest.sh("sha256sum </kept") == kept


def test_a_guest_that_runs_out_of_memory_takes_from_its_balloon(fresh: FreshDaemon) -> None:
    daemon = fresh(images=True)
    guest = boot(daemon, "web", balloon="never")
    # As soon as little is available it wants more than that: nobody kills anybody.
    guest.sh("""
mount -t tmpfs -o size=300m tmpfs /mnt
cat >/hungry <<'END'
while read -r a b c; [ "$a" != MemAvailable: ] || [ "$b" -gt 70000 ]; do
    [ "$a" ] || { exec </proc/meminfo; usleep 20000; }
done </proc/meminfo
dd if=/dev/zero of=/mnt/more bs=1M count=110 2>/dev/null && echo done >/fed
END
sh /hungry >/dev/null 2>&1 & """)
    with by_hand(daemon, "web") as hand:
        hand.execute("balloon", value=130 * MiB)
        eventually(lambda: left(hand) < 140 * MiB, "the balloon is filled", 20.0)
        eventually(lambda: left(hand) > 150 * MiB, "the guest took some of it back", 30.0)
    eventually(lambda: guest.sh("cat /fed 2>/dev/null || true") == "done", "it got all it wanted", 20.0)
    assert guest.sh("dmesg | grep -ci 'killed process' || true") == "0"


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("INNKEEPER_LONG"), reason="takes a minute: set INNKEEPER_LONG=1")
def test_a_guest_without_a_driver_is_named_and_left_alone(fresh: FreshDaemon) -> None:
    daemon = fresh(images=True)
    guest = boot(daemon, "web", limit="264MiB")
    guest.sh(
        "cd /sys/bus/virtio/drivers/virtio_balloon && ls -d virtio* >/its; "
        "for one in $(cat /its); do echo -n $one >unbind; done"
    )
    daemon.watch("web", lambda vm: "no balloon driver" in vm["status"]["balloon"], "is named", 60.0)
    assert "no balloon driver" in daemon.inn("show", "web").ok().out
    assert memory(daemon, "web")["balloon"] == SIZE
    guest.sh(
        "cd /sys/bus/virtio/drivers/virtio_balloon && for one in $(cat /its); do echo -n $one >bind; done"
    )
    eventually(
        lambda: memory(daemon, "web")["balloon"] == 136 * MiB, "it takes part again", 40.0, every_s=0.3
    )
    daemon.watch("web", lambda vm: not vm["status"]["balloon"], "nothing to say of it", 10.0)
