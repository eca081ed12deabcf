"""Snapshots of real guests: what a guest had in memory and on disk at a moment is what it has again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vms import forks
from vms.daemon import Daemon
from vms.forks import Guest
from vms.waiting import eventually

pytestmark = pytest.mark.vm

Fresh = Callable[..., Daemon]
CLOCK_WITHIN_S = 5


@pytest.fixture(scope="module")
def daemon(host: Daemon) -> Daemon:
    """Of this module: its guests get new processes all the time."""
    return host


@pytest.fixture(scope="module")
def web(daemon: Daemon) -> Iterator[Guest]:
    """One guest for all tests of this module: it is restored as they like."""
    guest = forks.boot(daemon, "web")
    yield guest
    guest.instance.remove(force=True, snapshots=True)


@pytest.fixture
def clean(web: Guest) -> Iterator[Guest]:
    """At the end without snapshots, and without what a test wrote."""
    web.instance.snapshots.create("clean")
    yield web
    web.instance.snapshots.restore("clean")
    for one in web.instance.snapshots.list():
        web.instance.snapshots.remove(one["name"])
    forks.assert_nothing_remains(web.daemon)
    assert not list(web.daemon.paths.snapshots.iterdir())


def _clock(guest: Guest) -> float:
    return abs(float(guest.sh("date +%s")) - time.time())


def test_a_tree_of_moments(clean: Guest) -> None:
    snapshots = clean.instance.snapshots
    boot = clean.boot_id()
    clean.write("a")
    taken = snapshots.create("a")
    assert taken["kind"] == "memory" and taken["pause_ms"] > 0 and taken["size_bytes"] > 1 << 20
    clean.write("b")
    snapshots.create("b", compress=True)
    clean.write("lost")
    snapshots.restore("a")
    clean.check("a")
    clean.write("c")
    snapshots.create("c")
    parents = {one["name"]: one["parent"] for one in snapshots.list()}
    assert parents == {"clean": "", "a": "clean", "b": "a", "c": "a"}
    for name, marks in (("b", ("a", "b")), ("c", ("a", "c")), ("a", ("a",))):
        snapshots.restore(name)
        clean.check(*marks)
        assert _clock(clean) < CLOCK_WITHIN_S
    snapshots.remove("a")
    snapshots.restore("b")
    clean.check("a", "b")
    assert clean.boot_id() == boot, "it never booted"


def test_into_a_new_vm_while_the_first_runs_on(clean: Guest, daemon: Daemon) -> None:
    clean.write("then")
    clean.instance.snapshots.create("s")
    clean.write("now")
    answer = daemon.inn("snapshot", "restore", "web", "s", "--as", "copy").ok()
    assert answer.out == "copy\n"
    copy = Guest(daemon, "copy")
    copy.check("then")
    assert copy.sh("hostname") == "copy" and clean.sh("hostname") == "web"
    copy.write("own")
    clean.check("then", "now")
    # It is a VM like any other: it can be forked and have snapshots.
    copy.instance.fork(name="grandchild")
    Guest(daemon, "grandchild").check("then", "own")
    copy.instance.snapshots.create("own")
    copy.write("more")
    copy.instance.snapshots.restore("own")
    copy.check("then", "own")
    clean.instance.snapshots.remove("s")
    copy.sh("sync; echo 3 >/proc/sys/vm/drop_caches")
    copy.check("then", "own")
    daemon.inn("rm", "-f", "copy").failed(4, "has snapshots", "--snapshots")
    daemon.inn("rm", "-f", "--snapshots", "copy", "grandchild").ok()


def test_saved_and_restored_over_a_restart_of_the_daemon(fresh: Fresh) -> None:
    daemon = fresh(images=True)
    guest = forks.boot(daemon, "web")
    boot = guest.boot_id()
    guest.write("kept")
    daemon.inn("save", "web").ok()
    vm = daemon.show("web")
    assert vm["state"] == "stopped" and "inn restore web" in vm["note"] and daemon.qemus() == {}
    assert daemon.stop() == 0
    daemon.start()
    time.sleep(2 * CLOCK_WITHIN_S)
    daemon.inn("restore", "web").ok()
    assert guest.boot_id() == boot and _clock(guest) < CLOCK_WITHIN_S
    guest.check("kept")
    daemon.inn("restore", "web").failed(3, "no saved state")
    eventually(lambda: not list(daemon.paths.snapshots.iterdir()), "what was saved goes")
    guest.remove()
    forks.assert_nothing_remains(daemon)


def test_disks_alone(clean: Guest, daemon: Daemon) -> None:
    clean.write("disk")
    taken = clean.instance.snapshots.create("d", disks_only=True)
    assert taken["consistent"], "the agent brought the file systems to rest"
    clean.write("after")
    clean.check("disk", "after")
    daemon.inn("snapshot", "restore", "web", "d").ok()
    clean.sh("mkdir -p /disk && mount /dev/vda /disk && sha256sum /disk/disk && [ ! -e /disk/after ]")


def test_the_console_goes_on_and_a_uefi_guest_comes_back(daemon: Daemon) -> None:
    guest = Guest(daemon, "firm")
    spec: dict[str, Any] = {"image": "tiny", "machine": {"firmware": "uefi"}, "networks": []}
    daemon.client.instances.create(spec, name="firm", start=True, wait="ready")
    try:
        guest.sh("echo then >/memory; echo said-before >/dev/ttyS0")
        guest.instance.snapshots.create("s")
        guest.sh("echo now >/memory; echo said-between >/dev/ttyS0")
        guest.instance.snapshots.restore("s")
        assert guest.sh("cat /memory; echo said-after >/dev/ttyS0") == "then"

        def said() -> bool:
            text = b"".join(guest.instance.logs("console"))
            return all(word in text for word in (b"said-before", b"said-between", b"said-after"))

        eventually(said, "all of it is in the console's log")
    finally:
        guest.instance.remove(force=True, snapshots=True)


def test_what_cannot_be_is_refused_before_anything_happens(clean: Guest, daemon: Daemon) -> None:
    clean.write("precious")
    record = clean.instance.snapshots.create("s")
    daemon.inn("snapshot", "create", "web", "s").failed(4, "already")
    daemon.inn("snapshot", "create", "web", "saved").failed(2, "inn save")
    daemon.inn("snapshot", "restore", "web", "nix").failed(3, "no snapshot")
    daemon.inn("snapshot", "restore", "web", "s", "--as", "web").failed(4, "already")
    state = daemon.paths.snapshot(record["id"]).device_state
    whole = state.read_bytes()
    state.write_bytes(whole[:-1] + b"?")
    daemon.inn("snapshot", "restore", "web", "s").failed(1, "damaged", "checksum")
    clean.check("precious")
    state.write_bytes(whole)
    daemon.inn("snapshot", "restore", "web", "s").ok()
    clean.check("precious")
