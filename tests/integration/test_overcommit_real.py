"""Memory given out and taken back, with real guests: merging of equal pages, and promises that are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from innkeeper.drivers.ksm import RUNNING, Claim, Ksm
from innkeeper.units import MiB
from vms.daemon import Daemon
from vms.forks import Guest
from vms.waiting import eventually

pytestmark = pytest.mark.vm
FreshDaemon = Callable[..., Daemon]
ALIKE_MB = 4
VM = {"image": "tiny", "networks": [], "memory": {"size": "128MiB"}}


def mergeable(pid: int) -> int:
    """Mappings the process asked the kernel to merge pages of (`mg`, proc(5))."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    return sum("mg" in line.split() for line in lines if line.startswith("VmFlags:"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change how pages are merged")
def test_what_forks_write_alike_is_merged_and_undone(fresh: FreshDaemon) -> None:
    ksm = Ksm()
    found = ksm.read()
    if found is None or found.run == RUNNING or Claim().former() is not None:
        pytest.skip("no KSM here, or somebody else uses it now")
    before = ksm.knobs()
    daemon = fresh(images=True)
    client = daemon.client
    client.instances.create(VM, name="origin", start=True, wait="ready")
    guest = Guest(daemon, "origin")
    guest.sh(f"head -c {ALIKE_MB}000000 /dev/urandom >/seed")
    guest.instance.fork(count=2, name="alike-{}")
    for name in ("alike-1", "alike-2"):
        Guest(daemon, name).sh("cp /seed /alike")
    assert client.host.set(ksm="always")["ksm"]["by"] == "innkeeper"
    wanted = 0.9 * ALIKE_MB * 1_000_000

    def saved() -> int:
        now = ksm.read()
        return now.saved_bytes if now is not None else 0

    eventually(lambda: saved() >= wanted, f"{wanted} bytes are saved, now {saved()}", 60.0, every_s=0.5)
    # The host's record is written anew every ten seconds.
    eventually(lambda: client.host.show()["ksm"]["saved_bytes"], "the savings are told", 30.0, every_s=0.5)
    report = client.host.show()["ksm"]
    assert report["running"] and report["by"] == "innkeeper" and report["pages_to_scan"] > 0
    shown = daemon.inn("host", "show").ok().out
    assert "ksm:" in shown and "saved" in shown
    # Never: every page is its VM's own again, the kernel as before, and no new VM asks for it.
    report = client.host.set(ksm="never")["ksm"]
    assert not report["running"] and ksm.knobs() == before
    assert saved() < wanted
    guest.instance.fork(name="apart")
    assert mergeable(daemon.status("alike-1")["pid"]) and not mergeable(daemon.status("apart")["pid"])
    assert Guest(daemon, "alike-1").sh("cmp /seed /alike && echo same") == "same"


def test_what_is_promised_is_refused_to_others_with_the_numbers(fresh: FreshDaemon) -> None:
    daemon = fresh(images=True)
    client = daemon.client
    kept = {**VM, "qos": {"memory": {"reservation": "128MiB"}}}
    client.instances.create(kept, name="kept", start=True, wait="running")
    owed = client.host.show()["overcommit"]["memory"]
    assert owed["promised"] == 128 * MiB and owed["worst"] >= owed["given"] > 128 * MiB
    # A ratio so small that one more VM is too many, though nearly all of the memory is free.
    ratio = round(1.1 * owed["given"] / owed["capacity"], 4)
    if ratio < 0.1:
        all_of_it = f"{(owed['capacity'] - owed['given']) // MiB}MiB"
        refused = daemon.inn("run", "tiny", "--name", "two", "--memory", all_of_it, "-d")
        assert refused.status == 4 and "overcommit.memory is 1" in refused.err, refused.err
    daemon.inn("host", "set", "overcommit.memory=4").ok()
    daemon.restart()
    assert client.host.show()["settings"]["overcommit"]["memory"] == 4.0
    refused = daemon.inn("fork", "kept", "--count", str(owed["capacity"] // (128 * MiB)))
    assert refused.status == 4 and "for VMs is promised already" in refused.err, refused.err
    for wrong in ("qos.memory.reservation=1TiB", "qos.memory.reservation=-1"):
        assert daemon.inn("set", "kept", wrong).status in (2, 4)
