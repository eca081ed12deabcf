"""The daemon is killed at every checkpoint of what is done with snapshots.

The guest has a known pattern in memory and on disk. A snapshot that was being taken is whole or gone; a
restore is finished by the next daemon; a removal, too. The guest loses nothing that it was not to lose.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from innkeeper.agent.context import CHECKPOINTS
from innkeeper.errors import InnkeeperError
from vms import forks
from vms.daemon import Daemon
from vms.forks import Guest
from vms.waiting import eventually

pytestmark = pytest.mark.vm

Fresh = Callable[..., Daemon]


def _points(prefix: str) -> list[str]:
    return [point for point in CHECKPOINTS if point.startswith(prefix)]


@pytest.fixture(scope="module")
def web(host: Daemon) -> Iterator[Guest]:
    """With a snapshot `ground`, to which every test goes back."""
    guest = forks.boot(host, "web")
    guest.write("ground")
    guest.instance.snapshots.create("ground")
    yield guest
    guest.instance.remove(force=True, snapshots=True)


def _crash(daemon: Daemon, point: str, act: Callable[[], object]) -> None:
    daemon.kill()
    daemon.start(crash_at=point)
    with contextlib.suppress(InnkeeperError):
        act()
    assert daemon.wait_dead() == -9
    daemon.start()


def _settled(guest: Guest, state: str = "running") -> dict[str, Any]:
    def at_rest(vm: dict[str, Any]) -> bool:
        return bool(vm["state"] == state and vm["status"]["generation"] == vm["wanted"]["generation"])

    return guest.daemon.watch(guest.name, at_rest, f"settles as {state}", 60.0)


def _finish(guest: Guest) -> None:
    """All works as before, and nothing is left."""
    guest.instance.snapshots.restore("ground")
    guest.check("ground")
    for one in guest.instance.snapshots.list():
        if one["name"] != "ground":
            guest.instance.snapshots.remove(one["name"])
    ids = {one["id"] for one in guest.instance.snapshots.list()}
    directories = guest.daemon.paths.snapshots
    eventually(lambda: {path.name for path in directories.iterdir()} == ids, "no other directory")


@pytest.mark.parametrize("point", _points("snapshot."))
def test_killed_while_one_is_taken(host: Daemon, web: Guest, point: str) -> None:
    web.write("more")
    _crash(host, point, lambda: web.instance.snapshots.create("new", timeout_s=60))
    _settled(web)
    web.check("ground", "more")
    ready = point == "snapshot.done"

    def answered() -> bool:
        return {one["name"]: one["state"] for one in web.instance.snapshots.list()}.get("new") in (
            ("ready",) if ready else (None,)
        )

    eventually(answered, "it is ready or gone")
    _finish(web)


@pytest.mark.parametrize("point", ["snapshot.frozen", "snapshot.commit", "snapshot.done"])
def test_killed_while_it_is_saved(host: Daemon, web: Guest, point: str) -> None:
    web.write("more")
    _crash(host, point, lambda: web.instance.save(timeout_s=60))
    if point == "snapshot.done":
        _settled(web, "stopped")
        web.instance.restore()
    _settled(web)
    web.check("ground", "more")
    _finish(web)


@pytest.mark.parametrize("point", _points("revert."))
def test_killed_while_it_is_restored(host: Daemon, web: Guest, point: str) -> None:
    web.write("lost")
    _crash(host, point, lambda: web.instance.snapshots.restore("ground", timeout_s=60))
    _settled(web)
    eventually(lambda: host.show("web")["ready"], "it is ready again", 30.0)
    web.check("ground")
    web.write("own")
    web.check("ground", "own")
    _finish(web)


@pytest.mark.parametrize("point", _points("unsnapshot."))
def test_killed_while_one_is_removed(host: Daemon, web: Guest, point: str) -> None:
    web.instance.snapshots.create("going")
    web.write("more")
    _crash(host, point, lambda: web.instance.snapshots.remove("going"))
    gone = [{"name": "ground"}]
    eventually(
        lambda: [{"name": one["name"]} for one in web.instance.snapshots.list()] == gone, "it goes", 20.0
    )
    web.check("ground", "more")
    _finish(web)


# -- the disk is full ------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("early", [True, False], ids=["refused", "meanwhile"])
def test_no_space_for_the_memory(fresh: Fresh, early: bool) -> None:
    daemon = fresh(images=True)
    guest = forks.boot(daemon, "web")
    guest.write("kept")
    place = daemon.paths.snapshots
    # Room for the reserve and nothing else; or for what is reckoned beforehand, and then no longer.
    size = 100 if early else 300
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=0700", "inn", str(place)], check=True)
    try:
        pid = daemon.show("web")["pid"]
        if early:
            daemon.inn("snapshot", "create", "web", "s").failed(4, "disk space")
            assert daemon.show("web")["pid"] == pid, "it was not even paused"
        else:
            shrinking = threading.Thread(target=_shrink, args=[place])
            shrinking.start()
            answer = daemon.inn("save", "web", "--compress")
            shrinking.join()
            answer.failed(4, "space")
        _settled(guest)
        guest.check("kept")
        assert guest.instance.snapshots.list() == []
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    guest.instance.snapshots.create("s")
    guest.instance.remove(force=True, snapshots=True)
    forks.assert_nothing_remains(daemon)


def _shrink(place: Path) -> None:
    """As soon as a snapshot is being written there, make the file system too small for it."""
    while not list(place.glob("*/chains.json")):
        pass
    subprocess.run(["mount", "-o", "remount,size=8m", str(place)], check=True)
