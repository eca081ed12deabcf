"""Faults in the middle of a fork: processes that die or stand still, a disk that fills up, a parent that is
removed, a daemon that is killed.

Whatever happens, the parent has in memory and on disk what it had, copies are complete or gone, and nothing
is left over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from innkeeper.errors import InnkeeperError, NotFound, WrongState
from vms import forks, traces
from vms.daemon import Daemon, short_directory
from vms.forks import Guest, Parent
from vms.waiting import eventually

pytestmark = pytest.mark.vm

Fresh = Callable[..., Daemon]
APPEARS_WITHIN_S = 20.0


@pytest.fixture(scope="module")
def lasting(host: Daemon) -> Parent:
    return Parent(host, networks=[])


@pytest.fixture
def parent(lasting: Parent, request: pytest.FixtureRequest) -> Iterator[Parent]:
    """Its memory and its disk are checked after each test, and that the next fork is like any."""
    daemon = lasting.daemon
    lasting.note("".join(char for char in request.node.name if char.isalnum()))
    yield lasting
    print(f"the daemon's log:\n{daemon.tail()}")
    for name in set(daemon.names()) - {lasting.name}:
        Guest(daemon, name).remove()
    lasting.check_all()
    forks.assert_nothing_remains(daemon)
    lasting.instance.fork(name="as-ever")
    Guest(daemon, "as-ever").check(*lasting.marks)
    Guest(daemon, "as-ever").remove()
    forks.assert_nothing_remains(daemon)
    assert leaks(daemon) == "ok"


def leaks(daemon: Daemon) -> str:
    (found,) = (one for one in daemon.client.host.doctor() if one["name"] == "leaks")
    return str(found["verdict"] if found["verdict"] == "ok" else found["detail"])


class Forking(threading.Thread):
    """A fork, asked for in the background."""

    def __init__(self, guest: Guest, count: int = 1, name: str = "copy-{}") -> None:
        super().__init__()
        self._guest, self._count, self._name = guest, count, name
        self.error: InnkeeperError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._guest.instance.fork(count=self._count, name=self._name, timeout_s=60)
        except InnkeeperError as error:
            self.error = error

    def ended(self) -> InnkeeperError | None:
        self.join(90)
        assert not self.is_alive(), "the fork got no answer"
        assert self.error is None or self.error.code != "bug", self.error
        return self.error


def _newcomer(daemon: Daemon, known: set[int], uid: str = "") -> int:
    """The pid of the next QEMU that appears, of that instance or else of any."""
    pids = [pid for of, pid in daemon.qemu_processes() if pid not in known and of.startswith(uid)]
    return pids[0] if pids else 0


def _await_newcomer(daemon: Daemon, known: set[int], uid: str = "") -> int:
    return eventually(
        lambda: _newcomer(daemon, known, uid), "another QEMU appears", APPEARS_WITHIN_S, every_s=0.001
    )


def _pids(daemon: Daemon) -> set[int]:
    return {pid for _, pid in daemon.qemu_processes()}


def _copies(daemon: Daemon, *parents: str) -> list[Guest]:
    """Those that are there once all is at rest: each is ready."""
    found = []
    for name in sorted(set(daemon.names()) - set(parents)):
        with contextlib.suppress(NotFound):
            daemon.client.instances.handle(name).wait("ready", timeout_s=60)
            found.append(Guest(daemon, name))
    return found


# -- processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stands_still_s", [0.0, 0.5], ids=["at-once", "while-it-is-waited-for"])
def test_a_copy_that_is_killed_before_it_runs(parent: Parent, stands_still_s: float) -> None:
    daemon = parent.daemon
    uid, known = daemon.show("parent")["uid"], _pids(daemon)
    forking = Forking(parent, count=2)
    # Of a copy, that is: the parent's stand-in has the parent's uid.
    pid = eventually(
        lambda: next((pid for of, pid in daemon.qemu_processes() if of != uid and pid not in known), 0),
        "the QEMU of a copy appears",
        APPEARS_WITHIN_S,
        every_s=0.001,
    )
    if stands_still_s:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(stands_still_s)
    traces.kill(pid)
    error = forking.ended()
    if stands_still_s:
        assert error is not None, "a copy that never ran was reported ready"
    if error is not None:
        assert daemon.names() == ["parent"], "not all or none"


def test_a_stand_in_that_stands_still_when_it_should_take_over(host: Daemon, parent: Parent) -> None:
    """The VM stood still for it; it is given up after 5 s (PAUSE_DEADLINE_S), and the VM runs on."""
    for attempt in range(5):
        # A new one each time: the RAM of one that was forked before is moved first, by a stand-in as well.
        still = Parent(host, f"still-{attempt}", networks=[])
        still.note("before")
        before, known = host.show(still.name)["pid"], _pids(host)
        forking = Forking(still)
        pid = _await_newcomer(host, known, host.show(still.name)["uid"])
        _await_frozen(host)
        os.kill(pid, signal.SIGSTOP)
        error = None
        try:
            forking.join(15.0)
        finally:
            traces.signal_if_there(pid, signal.SIGCONT)  # where it came too late, and that is the VM already
        error = forking.ended()
        if error is not None and "did not hand over" in error.message:
            assert set(host.names()) == {"parent", still.name}
            assert host.show(still.name)["pid"] == before and host.status(still.name)["state"] == "running"
            still.check_all()
            return
        for name in set(host.names()) - {"parent"}:
            Guest(host, name).remove()
    pytest.fail("it was never stopped in time")


def _await_frozen(daemon: Daemon) -> None:
    """Until a parent's state is being written: it stands still."""
    end = time.monotonic() + APPEARS_WITHIN_S
    while time.monotonic() < end:
        for directory in daemon.paths.moments.iterdir():
            if (directory / "device-state").exists():
                return
    raise AssertionError("no parent was frozen")


# -- what else happens meanwhile ----------------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.15])
def test_a_parent_that_is_removed_while_it_is_forked(host: Daemon, parent: Parent, after_s: float) -> None:
    going = Parent(host, "going", networks=[])
    going.note("before")
    forking = Forking(going, count=3, name="heir-{}")
    time.sleep(after_s)
    going.remove()
    error = forking.ended()
    heirs = _copies(host, "parent")
    assert [guest.name for guest in heirs] == ([] if error else ["heir-1", "heir-2", "heir-3"])
    for heir in heirs:
        heir.check("before")
    print(f"removed after {after_s} s: {error or 'all copies are there'}")


def test_the_daemon_is_killed_in_a_burst_of_forks(host: Daemon, parent: Parent) -> None:
    other = Parent(host, "other", networks=[])
    other.note("before")
    for turn, after_s in enumerate((0.25, 0.6)):
        burst = [
            Forking(guest, count=3, name=f"{guest.name}-{turn}{number}-{{}}")
            for number in range(2)
            for guest in (parent, other)
        ]
        time.sleep(after_s)
        host.restart()
        for forking in burst:
            forking.join(90)
            assert not forking.is_alive()
        for copy in _copies(host, "parent", "other"):
            origin = parent if copy.name.startswith("parent") else other
            assert copy.sh("hostname") == copy.name
            copy.check(*origin.marks)
            copy.remove()
        for guest in (parent, other):
            guest.check_all()
        forks.assert_nothing_remains(host)


# -- no room -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A tmpfs of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = short_directory()
    options = "size=320m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "inn-test", str(mounted)], check=True)
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)
    mounted.rmdir()


def _fill(place: Path, leave_bytes: int) -> Path:
    filler = place / f"filler-{leave_bytes}"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, free - leave_bytes))
    return filler


def _exhaust(place: Path) -> Path:
    """To the last byte, whoever else writes there."""
    with (place / "rest").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return place / "rest"


def _runs_on(daemon: Daemon, guest: Guest) -> bool:
    """A guest that wrote when the disk was full stands still until it is told that there is room; that it did
    may be known only a moment later."""
    _let_run(daemon)
    ended = daemon.status(guest.name)["ended"]
    assert ended is None, f"{guest.name} has ended: {ended}; {daemon.show(guest.name)['note']}"
    try:
        return guest.instance.exec(["true"], timeout_s=30).status == 0
    except WrongState:
        return False


def _let_run(daemon: Daemon) -> None:
    for one in daemon.client.instances.list_data():
        if one["state"] == "paused":
            with contextlib.suppress(NotFound):
                assert "disk is full" in one["note"], one
                daemon.client.instances.handle(one["name"]).resume()


@pytest.mark.daemon_errors("the store may be full")
def test_the_disk_fills_up_in_the_middle_of_a_fork(small_disk: Path, fresh: Fresh, tiny_image: Path) -> None:
    daemon = fresh(images=True, state=small_disk / "s")
    parent = Parent(daemon, networks=[])
    parent.note("before")
    full = _fill(small_disk, 8 << 20)
    Forking(parent).ended()
    daemon.inn("fork", "parent").failed(4, "space")
    full.unlink()
    outcomes = []
    for delay_s in (0.0, 0.02, 0.06):
        nearly, begun = _fill(small_disk, 100 << 20), time.monotonic()
        forking = Forking(parent, count=2)
        eventually(
            lambda: list(daemon.paths.moments.iterdir()) or not forking.is_alive(),  # noqa: B023
            "a moment is taken",
            APPEARS_WITHIN_S,
            every_s=0.0005,
        )
        time.sleep(delay_s)
        full = _exhaust(small_disk)
        time.sleep(0.5)
        nearly.unlink()
        full.unlink()
        error = forking.ended()
        outcomes.append(f"{time.monotonic() - begun:.1f} s: {error.message if error else 'all are there'}")
        eventually(partial(_runs_on, daemon, parent), "the parent runs on", 20.0, every_s=0.1)
        parent.check_all()
        for copy in _copies(daemon, "parent"):
            eventually(partial(_runs_on, daemon, copy), "the copy runs on", 20.0, every_s=0.1)
            copy.check(*parent.marks)
            copy.remove()
        forks.assert_nothing_remains(daemon)
        outcomes.append(f"{time.monotonic() - begun:.1f} s: all checked")
    print("\n".join(outcomes))
    parent.note("after")
    parent.instance.fork(name="again")
    Guest(daemon, "again").check("before", "after")
    Guest(daemon, "again").remove()
    forks.assert_nothing_remains(daemon)
