"""What real guests use, as the daemon says: busy, idle, reading, paused, hung, forked, talking."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from vms.daemon import Daemon, stopped_process
from vms.waiting import eventually

pytestmark = pytest.mark.vm

Fresh = Callable[..., Daemon]


def _metrics(daemon: Daemon, name: str, *, max_age_s: float = 0.5) -> dict[str, Any]:
    told = daemon.client.metrics(max_age_s=max_age_s)
    found: dict[str, Any] = next(one for one in told["instances"] if one["name"] == name)
    return found


def _vcpu(metrics: dict[str, Any]) -> dict[str, Any]:
    return next((one for one in metrics["cpu"]["threads"] if one["kind"] == "vcpu"), {"used": 0, "waited": 0})


def _proc_descriptors(pid: int) -> list[str]:
    names = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            names.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
        except OSError:
            continue
    return [name for name in names if name.startswith("/proc/") and name[6:7].isdigit()]


def test_what_guests_use(fresh: Fresh, small: Callable[..., dict[str, Any]]) -> None:
    daemon = fresh()
    make = daemon.client.instances.create
    for name, kind in (("busy", "spin"), ("idle", "halt"), ("reads", "read")):
        make(small(kind), name=name, start=True)

    # A vCPU that spins uses all the host gives it: what it does not run it waits for.
    def busy() -> dict[str, Any] | None:
        seen = _metrics(daemon, "busy")
        vcpu = _vcpu(seen)
        return seen if vcpu["used"] > 0.2 and vcpu["used"] + (vcpu["waited"] or 0) > 0.9 else None

    seen = eventually(busy, "the vCPU that spins shows as busy", 20.0, 0.5)
    assert seen is not None and seen["cpu"]["used"] <= 1.5 and seen["kvm"] is None
    assert seen["memory"]["given"] == 16 << 20 and seen["memory"]["resident"] > 16 << 20
    eventually(lambda: _vcpu(_metrics(daemon, "idle"))["used"] < 0.05, "the other one idles", 20.0, 0.5)
    reads = eventually(lambda: (_metrics(daemon, "reads")["disk"] or {}).get("read_ops"), "reads", 20.0, 0.5)
    assert reads > 10
    eventually(
        lambda: _metrics(daemon, "busy")["memory"]["private"], "its page tables were walked", 20.0, 0.5
    )

    # A QEMU that hangs holds up nobody's readings.
    with stopped_process(daemon.client.instances.get("idle").data["pid"]):
        for _ in range(2):
            time.sleep(1.0)
            begun = time.monotonic()
            assert _vcpu(_metrics(daemon, "busy"))["used"] > 0.1
            assert time.monotonic() - begun < 5.0

    # A fork hands the parent over to another process, whose counters begin anew.
    pid = daemon.client.instances.get("busy").data["pid"]
    handle = daemon.client.instances.handle("busy")
    handle.fork(count=1, name="copy", wait="running")
    eventually(lambda: daemon.client.instances.get("busy").data["pid"] != pid, "it is another process", 20.0)
    for _ in range(5):
        time.sleep(0.6)
        for name in ("busy", "copy"):
            seen = _metrics(daemon, name, max_age_s=0.3)
            for rate in (seen["cpu"]["used"], seen["cpu"]["waited"], _vcpu(seen)["used"]):
                assert rate is None or 0 <= rate <= 1.5, seen
    assert _vcpu(_metrics(daemon, "copy"))["used"] > 0.1
    assert not [name for name in _proc_descriptors(daemon.pid) if name.startswith(f"/proc/{pid}/")]

    handle.pause()
    eventually(
        lambda: _vcpu(_metrics(daemon, "busy", max_age_s=0.3))["used"] < 0.01, "paused: no CPU", 10.0, 0.5
    )

    # History outlives the daemon, and goes with the VM.
    times = handle.history()["times"]
    assert times and "vcpu0" in handle.history()["peak"]
    daemon.stop()
    daemon.start()
    assert daemon.client.instances.handle("busy").history()["times"][: len(times)] == times
    assert daemon.client.host.history(since=0)["average"]["cpu"]
    for name in daemon.names():
        daemon.client.instances.handle(name).remove(force=True)
    eventually(lambda: not _proc_descriptors(daemon.pid), "no descriptor of a process that has gone")


def test_traffic_as_the_guest_counts_it(daemon: Daemon, shared_vm: str) -> None:
    """passt speaks to QEMU over a socket pair, which the kernel does not count: the agent is asked."""
    vm = daemon.client.instances.handle(shared_vm)
    eventually(lambda: _metrics(daemon, shared_vm)["network"], "two readings of its traffic", 30.0, 0.5)
    before = _metrics(daemon, shared_vm)
    assert before["network"]["source"] == "guest"
    gateway = "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'"
    send = f"g=$({gateway}); ping -c 30 -i 0.05 -w 3 $g"
    assert b"30 packets transmitted" in vm.exec(["sh", "-c", send], timeout_s=30).stdout

    def sent() -> bool:
        now = _metrics(daemon, shared_vm)["totals"]
        went = now["network_tx_packets"] - before["totals"]["network_tx_packets"]
        return 30 <= went <= 6000

    eventually(sent, "the packets it sent are counted", 30.0, 0.5)
