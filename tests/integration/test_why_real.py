"""Real guests that get in each other's way, and what `inn top --why` says of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from innkeeper.client.instance import Instance
from innkeeper.errors import WrongState
from vms.daemon import Daemon
from vms.waiting import eventually

pytestmark = pytest.mark.vm

Fresh = Callable[..., Daemon]


def _cause(why: dict[str, Any], resource: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in why["causes"] if one["resource"] == resource)
    return found


def test_the_one_that_takes_the_cpus_is_named(fresh: Fresh, small: Callable[..., dict[str, Any]]) -> None:
    """Three that never rest on two CPUs: one has two vCPUs, so it takes more than the others."""
    daemon = fresh(images=True)
    make = daemon.client.instances.create
    hog = make({"image": "tiny", "cpu": {"count": 2}}, name="hog", start=True, wait="ready")
    hog.exec(["sh", "-c", "for i in 1 2; do (while :; do :; done) >/dev/null 2>&1 & done"])
    for name, kind in (("web", "spin"), ("idle", "halt")):
        make(small(kind), name=name, start=True)
    web = daemon.client.instances.handle("web")

    def waits() -> dict[str, Any] | None:
        try:
            why = web.why(since="5s")
        except WrongState:  # it was not read twice yet
            return None
        return why if (_cause(why, "cpu")["lost"] or 0.0) > 0.1 else None

    why = eventually(waits, "web waits for a CPU", 20.0, 0.5)
    print(daemon.inn("top", "--why", "web", "--since", "5s").stdout.decode())
    assert why["causes"][0]["resource"] == "cpu" and "of the time for a CPU" in why["verdict"]
    cpu = why["causes"][0]
    vms = [one for one in cpu["users"] if one["kind"] == "instance"]
    assert [one["name"] for one in vms][:2] == ["hog", "web"] and vms[1]["itself"]
    assert sum(one["used"] for one in cpu["users"]) <= cpu["capacity"] + 1e-6
    # What it wanted is what the kernel's account of its threads says, give or take a reading.
    told = next(one["cpu"] for one in daemon.client.metrics()["instances"] if one["name"] == "web")
    assert cpu["numbers"]["wanted"] == pytest.approx(told["used"] + told["waited"], abs=0.35)
    assert any(one["command"].startswith("inn set web qos.cpu.") for one in cpu["advice"])

    idle = daemon.client.instances.handle("idle").why(since="5s")
    assert (_cause(idle, "cpu")["lost"] or 0.0) < cpu["lost"]
    shown = daemon.inn("top", "--why", "web", "--since", "10s").ok().out
    assert "Who used the" in shown and "hog" in shown and "web (itself)" in shown
    daemon.inn("top", "--why", "nobody").failed(3, "nobody")
    daemon.inn("top", "--why", "web", "--since", "2d").failed(2, "24h")


def _held(one: Instance, resource: str) -> dict[str, Any] | None:
    why: dict[str, Any] = one.why(since="5s")
    return why if why["causes"][0]["resource"] == resource and why["causes"][0]["lost"] > 0.2 else None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs control groups, as root has them")
def test_its_own_cpu_limit_is_told_from_others(fresh: Fresh, small: Callable[..., dict[str, Any]]) -> None:
    """A guest that never rests and may have little: whether others are busy or not, it could have no more."""
    daemon = fresh()
    limited = small("spin", qos={"cpu": {"limit": "300m"}})
    slow = daemon.client.instances.create(limited, name="slow", start=True, wait="running")
    why = eventually(lambda: _held(slow, "cpu-limit"), "its CPU limit is named", 30.0, 0.5)
    assert "its own limit of 0.3 CPUs held slow" in why["verdict"]
    first = why["causes"][0]
    assert first["numbers"]["got"] <= 0.3 * 1.2 < first["numbers"]["wanted"]
    command = first["advice"][0]["command"]
    assert command.startswith("inn set slow qos.cpu.limit=")
    daemon.inn(*command.split()[1:]).ok()  # it is one that works


# One request at a time, for as long as the guest runs.
READER = "(while dd if=/dev/vda of=/dev/null bs=4k count=4096 iflag=direct; do :; done) >/dev/null 2>&1 &"


def test_its_own_disk_limit_is_told_from_others(fresh: Fresh) -> None:
    """A guest that reads its disk at the rate it is held to."""
    daemon = fresh(images=True)
    web = daemon.client.instances.create(
        {
            "image": "tiny",
            "networks": [],
            "disks": [{"name": "a", "size": "64MiB", "qos": {"read_ops": 20}}],
        },
        name="web",
        start=True,
        wait="ready",
    )
    web.exec(["sh", "-c", READER])

    why = eventually(lambda: _held(web, "disk-limit"), "its disk's limit is named", 30.0, 0.5)
    first = why["causes"][0]
    assert "they may do 20 requests a second" in why["verdict"] and first["device"]
    assert [one["command"] for one in first["advice"]] == ["inn set web disks.0.qos.read_ops=40"]
    daemon.inn("set", "web", "disks.0.qos.read_ops=40").ok()  # the command is one that works
