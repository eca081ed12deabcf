"""The daemon is killed at every checkpoint of a fork, of a promotion and of making a copy.

The parent is a real guest with a known pattern in memory and on disk: it runs on, from whichever of the two
processes had it, and lost nothing. Each copy is complete or gone; nothing is left over; forks go on working.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from innkeeper.agent.context import CHECKPOINTS
from innkeeper.errors import InnkeeperError, NotFound
from vms import forks
from vms.daemon import Daemon
from vms.forks import Guest, Parent

pytestmark = pytest.mark.vm

POINTS = [point for point in CHECKPOINTS if point.startswith(("fork.", "copy.", "promote."))]
# Of a parent that does not run; the others are not reached then.
STOPPED_POINTS = ["fork.layers", "fork.chained", "fork.done", "copy.begun", "copy.made"]
# A parent whose disk has more layers than this is replaced by a new one: each fork adds one.
MOST_LAYERS = 16


@pytest.fixture(autouse=True)
def nothing_for_the_next(host: Daemon) -> Iterator[None]:
    """One test that fails must not take the others with it."""
    yield
    for name in set(host.names()) - {"parent"}:
        with contextlib.suppress(InnkeeperError):
            Guest(host, name).remove()


@pytest.fixture(scope="module")
def parents() -> list[Parent]:
    return []


@pytest.fixture
def parent(host: Daemon, parents: list[Parent]) -> Parent:
    if not parents:
        parents.append(Parent(host))
    elif len(forks.chain(host, "parent")) > MOST_LAYERS:
        parents.pop().remove()
        parents.append(Parent(host))
    return parents[0]


def _crash_in_fork(daemon: Daemon, point: str, name: str) -> None:
    daemon.kill()
    daemon.start(crash_at=point)
    with contextlib.suppress(InnkeeperError):
        daemon.client.instances.handle(name).fork(count=2, name=f"{name}-{{}}", timeout_s=60)
    assert daemon.wait_dead() == -9
    daemon.start()


def _settle(daemon: Daemon, name: str) -> list[Guest]:
    """The copies that are there once all is at rest."""
    copies = []
    for copy in (f"{name}-1", f"{name}-2"):
        with contextlib.suppress(NotFound):
            daemon.client.instances.handle(copy).wait("ready", timeout_s=60)
            copies.append(Guest(daemon, copy))
    forks.assert_nothing_remains(daemon)
    assert set(daemon.names()) <= {"parent", name, *(copy.name for copy in copies)}
    return copies


@pytest.mark.parametrize("point", POINTS)
def test_killed_in_the_fork_of_a_running_vm(host: Daemon, parent: Parent, point: str) -> None:
    parent.note(f"before-{point}")
    _crash_in_fork(host, point, "parent")
    copies = _settle(host, "parent")
    known = parent.marks
    parent.check_all()
    parent.note(f"after-{point}")
    for copy in copies:
        assert copy.sh("hostname") == copy.name
        copy.write("own")
        copy.check(*known, "own")
    parent.check_all()
    # And all goes on: the copy of now has what the parent has now.
    host.client.instances.handle("parent").fork(name="again")
    again = Guest(host, "again")
    again.check(*parent.marks)
    for copy in (*copies, again):
        copy.remove()
    parent.check_all()
    forks.assert_nothing_remains(host)


@pytest.mark.parametrize("point", STOPPED_POINTS)
def test_killed_in_the_fork_of_a_stopped_vm(host: Daemon, point: str) -> None:
    spec = forks.SPEC | {"networks": []}
    host.client.instances.create(spec, name="still", wait="running")
    _crash_in_fork(host, point, "still")
    copies = _settle(host, "still")
    assert host.status("still")["state"] == "stopped"
    assert len(forks.chain(host, "still")) in (1, 2)
    host.client.instances.handle("still").fork(name="again", wait="running")
    for guest in (*copies, Guest(host, "again"), Guest(host, "still")):
        guest.remove()
    forks.assert_nothing_remains(host)
