"""Templates of real guests: copies begin at the moment it was frozen at, and nobody stands still for that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from innkeeper.errors import Unsupported, WrongState
from vms import forks
from vms.daemon import Daemon
from vms.forks import Guest
from vms.waiting import eventually

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def template(host: Daemon) -> Guest:
    """Frozen, with something in its memory and on its disk."""
    guest = forks.boot(host, "base")
    guest.write("before")
    made = guest.instance.template()
    assert made.data["template"] and made.data["state"] == "paused"
    return guest


@pytest.fixture(autouse=True)
def nothing_remains(host: Daemon) -> Iterator[None]:
    yield
    print(f"the daemon's log:\n{host.tail()}")  # shown when the test fails
    for name in host.names():
        if name != "base":
            host.client.instances.handle(name).remove(force=True)
    forks.assert_nothing_remains(host)


def test_copies_go_on_from_the_moment(host: Daemon, template: Guest) -> None:
    pid = host.show("base")["pid"]
    answer = template.instance.fork(count=2, name="copy-{}")
    assert answer["pause_ms"] == 0 and host.show("base")["pid"] == pid
    first, second = Guest(host, "copy-1"), Guest(host, "copy-2")
    first.write("own")
    first.check("before", "own")
    second.check("before")
    assert (first.sh("hostname"), second.sh("hostname")) == ("copy-1", "copy-2")
    assert len({guest.sh("cat /etc/machine-id") for guest in (first, second)}) == 2
    assert abs(float(first.sh("date +%s")) - host.show("copy-1")["created_at"]) < 30
    # A copy is a VM like any other: it can be forked, and starts from its own disk.
    first.instance.fork(name="deeper")
    Guest(host, "deeper").check("before", "own")


def test_a_command_in_a_copy(host: Daemon, template: Guest) -> None:
    done = host.inn("run", "--from", "base", "--", "sh", "-c", "ls /memory; exit 7")
    assert (done.status, done.stdout.strip()) == (7, b"before")
    assert host.names() == ["base"]
    host.inn("run", "--from", "base", "--memory", "1GiB").failed(2, "--memory cannot be given with --from")
    host.inn("run", "--from", "nobody").failed(3, "nobody")


def test_the_next_daemon_has_it_too(host: Daemon, template: Guest) -> None:
    template.instance.template(pool=1)
    eventually(lambda: host.show("base")["status"]["spares"] == 1, "a spare waits", 20.0)
    host.kill()
    host.start()
    assert host.show("base")["template"]
    host.inn("run", "--from", "base", "-d", "--name", "after").ok()
    Guest(host, "after").check("before")
    template.instance.template(pool=0)
    eventually(lambda: len(host.qemus()) == 2, "its spares have gone", 20.0)


def test_a_pool_gives_what_waits(host: Daemon, template: Guest) -> None:
    template.instance.template(pool=2)
    eventually(lambda: host.show("base")["status"]["spares"] == 2, "two wait", 20.0)
    waiting = set(host.qemus()) - {host.show("base")["uid"]}
    found = {one["name"]: one for one in host.client.host.doctor()}
    assert found["leaks"]["verdict"] == "ok", "what waits is nobody's leak"
    template.instance.fork(count=3, name="kid-{}")
    uids = {host.show(f"kid-{number}")["uid"] for number in (1, 2, 3)}
    assert waiting < uids
    for number in (1, 2, 3):
        kid = Guest(host, f"kid-{number}")
        kid.check("before")
        assert kid.sh("hostname") == kid.name
        assert kid.sh("cat /sys/class/net/eth0/address") in host.inn("show", "--argv", kid.name).ok().out
    template.instance.template(pool=0)
    eventually(lambda: len(host.qemus()) == 4, "its spares have gone", 20.0)


def test_what_would_touch_the_moment_is_refused(host: Daemon, template: Guest) -> None:
    for verb in (template.instance.pause, template.instance.snapshots.create):
        with pytest.raises(WrongState, match="is a template"):
            verb()
    host.inn("clone", "base", "other").failed(4, "is a template")
    host.inn("exec", "base", "true").failed(4, "paused")
    explained = template.instance.explain("fork", count=2)
    assert explained["allowed"]
    with pytest.raises(Unsupported, match=r"cpu\.count"):
        spec = host.show("base")["spec"] | {"cpu": {"count": 2}}
        host.client.instances.create(spec, name="more", start=True, template="base")


def test_it_runs_on_and_is_removed(host: Daemon, template: Guest) -> None:
    """Its copies live on through both."""
    template.instance.fork(name="child")
    child = Guest(host, "child")
    template.instance.resume()
    template.write("own")
    template.check("before", "own")
    child.check("before")
    assert not host.show("base")["template"]
    template.remove()
    child.write("own")
    child.check("before", "own")


def test_behind_an_image(host: Daemon) -> None:
    host.inn("template", "--image", "tiny", "--pool", "1").ok()
    eventually(lambda: host.show("tiny-template")["status"]["spares"] == 1, "a spare waits", 20.0)
    booted = float(Guest(host, "tiny-template").daemon.show("tiny-template")["started_at"])
    done = host.inn("run", "-d", "tiny", "--name", "warm").ok()
    assert "runs on from the template tiny-template" in done.stderr.decode()
    assert host.show("warm")["fork"]["parent"] == "tiny-template"
    done = host.inn("run", "-d", "tiny", "--name", "cold", "--cold").ok()
    assert "template" not in done.stderr.decode() and host.show("cold")["fork"] is None
    done = host.inn("run", "-d", "tiny", "--name", "other", "--cpus", "2").ok()
    assert "template" not in done.stderr.decode() and Guest(host, "other").sh("nproc") == "2"
    assert booted < host.show("warm")["started_at"]
    host.inn("rm", "-f", "tiny-template").ok()
