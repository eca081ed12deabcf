"""The daemon is killed at every checkpoint of making a template, of its pool, of its copies, of its waking.

What was in memory and on disk is there afterwards, in the template or in the VM that it still is; nothing is
left over; copies can be made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from innkeeper.agent.context import CHECKPOINTS
from innkeeper.errors import InnkeeperError, NotFound
from vms import forks
from vms.daemon import Daemon
from vms.forks import Guest
from vms.waiting import eventually

pytestmark = pytest.mark.vm

MAKING = [point for point in CHECKPOINTS if point.startswith("template.")]
SPARES = [point for point in CHECKPOINTS if point.startswith("spare.")]
COPYING = ["copy.begun", "copy.made", "start.launched", "copy.started"]


@pytest.fixture(scope="module")
def base(host: Daemon) -> Guest:
    guest = forks.boot(host, "base")
    guest.write("first")
    return guest


@pytest.fixture(autouse=True)
def nothing_for_the_next(host: Daemon) -> Iterator[None]:
    yield
    for name in set(host.names()) - {"base"}:
        with contextlib.suppress(InnkeeperError):
            Guest(host, name).remove()


def crash(daemon: Daemon, point: str, act: object) -> None:
    daemon.kill()
    daemon.start(crash_at=point)
    with contextlib.suppress(InnkeeperError):
        assert callable(act)
        act()
    assert daemon.wait_dead() == -9
    daemon.start()


def copy_has_it(daemon: Daemon, base: Guest) -> None:
    base.instance.fork(name="probe")
    probe = Guest(daemon, "probe")
    probe.check("first")
    probe.remove()


@pytest.mark.parametrize("point", MAKING)
def test_while_it_is_made(host: Daemon, base: Guest, point: str) -> None:
    boot = base.boot_id()
    crash(host, point, lambda: base.instance.template(timeout_s=30))
    eventually(lambda: host.show("base")["template"], "it becomes a template all the same", 30.0)
    forks.assert_nothing_remains(host)
    copy_has_it(host, base)
    base.instance.resume()
    assert base.boot_id() == boot, "it was booted anew"
    base.check("first")


def test_while_it_wakes(host: Daemon, base: Guest) -> None:
    boot = base.boot_id()
    base.instance.template()
    crash(host, "wake.done", base.instance.resume)
    assert not host.show("base")["template"]
    assert base.boot_id() == boot
    base.check("first")
    forks.assert_nothing_remains(host)


@pytest.mark.parametrize("point", SPARES)
def test_while_a_spare_is_made(host: Daemon, base: Guest, point: str) -> None:
    base.instance.template(pool=0)
    crash(host, point, lambda: base.instance.template(pool=1))
    eventually(lambda: host.show("base")["status"]["spares"] == 1, "the pool is full", 30.0)
    base.instance.template(pool=0)
    eventually(lambda: len(host.qemus()) == 1, "its spare has gone", 20.0)
    forks.assert_nothing_remains(host)


@pytest.mark.parametrize("pool", [0, 1])
@pytest.mark.parametrize("point", COPYING)
def test_while_a_copy_starts(host: Daemon, base: Guest, point: str, pool: int) -> None:
    def act() -> None:
        if pool:
            eventually(lambda: host.show("base")["status"]["spares"] == 1, "the pool is full", 30.0)
        base.instance.fork(name="copy", timeout_s=30)

    base.instance.template(pool=pool)
    crash(host, point, act)
    base.instance.template(pool=0)
    with contextlib.suppress(NotFound):
        host.client.instances.handle("copy").wait("ready", timeout_s=60)
        copy = Guest(host, "copy")
        copy.check("first")
        assert copy.sh("hostname") == "copy"
    eventually(lambda: len(host.qemus()) == len(host.names()), "no spare is left", 20.0)
    forks.assert_nothing_remains(host)
    copy_has_it(host, base)
