"""Advice on real guests: by what they really did, applied, watched and taken back."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from typing import Any

import pytest

from vms.daemon import Daemon
from vms.forks import Guest, assert_nothing_remains

pytestmark = pytest.mark.vm

# The sampler reads every 5 s; two or three readings are enough for what goes on all the time.
SHORT = ("--window", "20s", "--min-data", "10s")
Json = dict[str, Any]


def spin(guest: Guest, count: int) -> None:
    guest.sh(f"for n in $(seq {count}); do (while :; do :; done) </dev/null >/dev/null 2>&1 & done")


def advice(host: Daemon, name: str) -> Json:
    found: Json = host.inn("advise", name, *SHORT, "--json").ok().json
    return found


def until(host: Daemon, name: str, good: Callable[[Json], object], what: str, within_s: float = 90.0) -> Json:
    """The advice as soon as it is so. Nothing in it sends an event: it is asked once a second."""
    end = time.monotonic() + within_s
    while not good(found := advice(host, name)):
        assert time.monotonic() < end, f"not seen: {what}; last {found}"
        time.sleep(1.0)
    return found


def of_kind(found: Json, kind: str) -> list[Json]:
    return [one for one in found["advice"] if one["kind"] == kind]


def started(host: Daemon, name: str, cpus: int, threads: int) -> Guest:
    host.inn("run", "tiny", "-d", "--name", name, "--cpus", str(cpus), "--network", "none").ok()
    spin(Guest(host, name), threads)
    return Guest(host, name)


def test_a_busy_one_gets_more_unless_it_waits_for_the_host(host: Daemon) -> None:
    """On a machine that is busy itself the rule must say so: both are right, by the numbers of that time."""
    inn, busy = host.inn, started(host, "busy", 1, 12)
    known = ("busy", "contended")

    def seen(now: Json) -> bool:
        return any(one["reason"] in known for one in [*now["advice"], *now["withheld"]])

    found = until(host, "busy", seen, "more, or why not")
    if of_kind(found, "cpu"):
        one = of_kind(found, "cpu")[0]
        assert one["change"] == {"cpu.count": 2} and "above 75 % and 90 %" in one["evidence"]
        inn(*shlex.split(one["command"])[1:]).ok()  # as it is printed
        assert busy.sh("nproc") == "2"
        # What it did with one vCPU says nothing about two: not at once again.
        assert advice(host, "busy")["withheld"][0]["reason"] == "data"
    else:
        waited = host.client.instances.handle("busy").history()["average"]["wait"]
        assert max(one for one in waited if one is not None) > 0.1
    busy.remove()


def test_one_thread_needs_one_vcpu_and_what_was_worse_is_taken_back(host: Daemon) -> None:
    """Through a kill of the daemon while it is watched."""
    inn, web = host.inn, started(host, "web", 2, 1)
    boot = web.boot_id()
    found = until(host, "web", lambda now: of_kind(now, "cpu"), "one is enough")
    one = found["advice"][0]  # the most urgent
    assert one["reason"] == "single-threaded" and one["change"] == {"cpu.count": 1} and one["live"]
    assert one["what"].startswith("1 vCPU instead of 2") and "near 1/2 of its 2 vCPUs" in one["evidence"]
    assert one["command"] in inn("advise", "web", *SHORT).ok().out.splitlines()[3]

    inn("advise", "web", *SHORT, "--apply", "--watch", "10s").ok()
    assert web.sh("nproc") == "1" and host.status("web")["cpus"] == 1
    inn("advise", "web", "--apply").failed(4, "being watched after a change already")
    spin(web, 15)  # now there is more to do than one vCPU can
    host.kill()
    host.start()
    found = until(host, "web", lambda now: now["trials"][-1]["state"] == "reverted", "taken back")
    outcome = found["trials"][-1]["outcome"]
    assert outcome.startswith("worse, and put back: tasks queue in its guest") and "on 1 now" in outcome
    assert web.sh("nproc") == "2" and host.status("web")["cpus"] == 2
    assert web.boot_id() == boot, "all that without a restart"
    assert "reverted" in inn("advise", "web", *SHORT).ok().out
    web.remove()
    assert_nothing_remains(host)


@pytest.mark.skipif(not os.environ.get("INNKEEPER_LONG"), reason="takes 40 s: set INNKEEPER_LONG=1")
def test_a_disk_that_its_limit_holds_gets_a_higher_one(host: Daemon) -> None:
    inn = host.inn
    inn("run", "tiny", "-d", "--name", "io", "--disk", "256MiB", "--network", "none").ok()
    inn("set", "io", "qos.disk.total_bytes=1MiB/s").ok()
    guest = Guest(host, "io")
    guest.sh("(while :; do cat /dev/vda; done) </dev/null >/dev/null 2>&1 &")
    found = until(host, "io", lambda now: of_kind(now, "disk"), "the limit holds")
    (one,) = of_kind(found, "disk")
    assert one["change"] == {"qos.disk.total_bytes": "2MiB/s"} and one["live"]
    inn("advise", "io", *SHORT, "--apply", "--kind", "disk", "--watch", "20s").ok()
    disks = host.client.instances.handle("io").inspect_disk()["disks"]
    assert {"total_bytes": 2 << 20} in [disk["throttle"] for disk in disks]
    found = until(
        host, "io", lambda now: now["trials"][-1]["state"] not in ("applying", "watching"), "judged"
    )
    trial = found["trials"][-1]
    assert trial["state"] == "kept", trial
    assert trial["measured_after"]["disk_read"] > 1.5 * trial["measured_before"]["disk_read"]
    guest.remove()


@pytest.mark.skipif(not os.environ.get("INNKEEPER_LONG"), reason="takes 30 s: set INNKEEPER_LONG=1")
def test_memory_that_a_guest_leaves_idle_goes_back(host: Daemon) -> None:
    inn = host.inn
    memory = {"size": "256MiB", "max": "512MiB"}
    host.client.instances.create({"image": "tiny", "memory": memory}, name="idle", start=True, wait="ready")
    guest = Guest(host, "idle")
    inn("set", "idle", "memory.size=384MiB").ok()
    found = until(host, "idle", lambda now: of_kind(now, "memory"), "half of it is idle")
    (one,) = of_kind(found, "memory")
    assert one["reason"] == "roomy" and one["change"] == {"memory.size": "256MiB"} and one["live"], one
    inn("advise", "idle", *SHORT, "--apply", "--kind", "memory", "--watch", "10s").ok()
    assert host.status("idle")["memory"]["size"] == 256 << 20
    assert int(guest.sh("awk '/MemTotal/ {print $2}' /proc/meminfo")) < 256 << 10
    found = until(host, "idle", lambda now: now["trials"][-1]["ended_at"], "judged")
    assert found["trials"][-1]["state"] == "kept", found["trials"][-1]
    guest.remove()


def test_asked_about_what_cannot_be_told(host: Daemon) -> None:
    inn = host.inn
    inn("create", "tiny", "--name", "off").ok()
    inn("advise", "off").failed(4, "does not run")
    inn("advise", "off", "--apply").failed(4, "inn start off")
    inn("advise", "of").failed(3, "did you mean off")
    inn("advise", "off", "--window", "1s").failed(2, "choose one from 10s")
    inn("advise", "off", "--window", "30d").failed(2, "choose one from 10s")
    inn("advise", "off", "--window", "1m", "--min-data", "1h").failed(2, "cannot lie in a window")
    inn("advise", "--kind", "cpu").failed(2, "--apply")
    assert "no VM runs" in inn("advise").ok().err
    inn("rm", "off").ok()
