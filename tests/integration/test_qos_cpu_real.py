"""CPU time of real guests that never rest: limits, reservations, shares, and groups that somebody takes away.

Other people use the machine: what a VM gets is held against the kernel's own account, and what it was
reserved; more than its limit it must never get.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from innkeeper.client.instance import Instance
from innkeeper.drivers import cgrouptree
from innkeeper.drivers.cgroup import Cgroups, Group, Place
from innkeeper.drivers.cgroupfiles import SystemFiles
from innkeeper.errors import NoCapacity
from vms.cli import User
from vms.daemon import Daemon
from vms.waiting import eventually

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs control groups, as root has them"),
]

Fresh = Callable[..., Daemon]
Spec = Callable[..., dict[str, Any]]


@pytest.fixture
def spinning(daemon: Daemon, small: Spec) -> Iterator[Callable[..., Instance]]:
    """VMs whose vCPU never rests, of the test's own."""
    made: list[Instance] = []

    def make(name: str, **qos: Any) -> Instance:
        vm = daemon.client.instances.create(
            small("spin", qos={"cpu": qos}), name=name, start=True, wait="running"
        )
        made.append(vm)
        return vm

    yield make
    for vm in made:
        vm.remove(force=True)


def group_of(daemon: Daemon, name: str) -> Group:
    """Of a VM that runs: the one its QEMU is in."""
    shown = daemon.show(name)
    bases = Cgroups.detect(daemon.paths.state).bases
    found = cgrouptree.of_process(Path("/"), shown["pid"], shown["uid"])
    places = {controller: Place(bases[controller].version, path) for controller, path in found.items()}
    assert set(places) >= {"cpu", "memory"}
    return Group(shown["uid"], places, SystemFiles())


def cores(group: Group, seconds: float) -> float:
    """What it used, by the kernel's account."""
    begun, before = time.monotonic(), group.cpu_s()
    time.sleep(seconds)
    after, took = group.cpu_s(), time.monotonic() - begun
    assert before is not None and after is not None
    return (after - before) / took


def test_a_limit_is_never_exceeded_and_changes_at_once(
    daemon: Daemon, spinning: Callable[..., Instance]
) -> None:
    vm = spinning("limited", limit="300m", reservation="300m")
    group = group_of(daemon, "limited")
    eventually(lambda: (group.cpu_s() or 0) > 0.2, "it spins", 20.0)
    used = cores(group, 3.0)
    assert 0.15 < used < 0.3 * 1.05
    begun = time.monotonic()
    vm.update({"qos": {"cpu": {"limit": "150m", "reservation": "100m"}}})
    print(f"changed in {time.monotonic() - begun:.3f} s")
    assert cores(group, 3.0) < 0.15 * 1.05
    throttled = daemon.client.metrics(max_age_s=0.5)["instances"]
    assert next(one for one in throttled if one["name"] == "limited")["cpu"]["throttled"] is not None
    vm.update({"qos": {"cpu": {"limit": ""}}})
    eventually(lambda: cores(group, 0.5) > 0.2, "it is free again", 20.0)
    said = vm.qos()["cpu"]
    assert (said["limit"], said["reservation"], said["not_in_force"]) == (None, "0.1", "")


def test_busy_vms_share_by_their_shares(daemon: Daemon, spinning: Callable[..., Instance]) -> None:
    """Both on one CPU: whoever else uses it takes of both alike."""
    cpu = min(os.sched_getaffinity(0))
    weights = {}
    for name, shares in (("more", 3000), ("less", 1000)):
        spinning(name, shares=shares)
        for thread in os.listdir(f"/proc/{daemon.status(name)['pid']}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), {cpu})
    groups = {name: group_of(daemon, name) for name in ("more", "less")}
    # As many of the same kind as there are CPUs, and more: else each would have a CPU of its own.
    for number in range(len(os.sched_getaffinity(0))):
        spinning(f"other-{number}", shares=1000)
    for name, group in groups.items():
        file = "cpu.weight" if group.version("cpu") == 2 else "cpu.shares"

        def weight(group: Group = group, file: str = file) -> int:
            return int(group.read("cpu", file) or 0)

        weights[name] = weight
    eventually(lambda: 2.5 < weights["more"]() / weights["less"]() < 3.5 or None, "weights follow", 10.0)
    before = {name: group.cpu_s() or 0.0 for name, group in groups.items()}
    eventually(lambda: (groups["less"].cpu_s() or 0.0) - before["less"] > 0.7, "they ran", 30.0, every_s=0.1)
    used = {name: (group.cpu_s() or 0.0) - before[name] for name, group in groups.items()}
    assert 2.2 < used["more"] / used["less"] < 4.0, used


def test_what_cannot_be_kept_is_refused_with_the_numbers(
    daemon: Daemon, spinning: Callable[..., Instance], small: Spec
) -> None:
    cpus = len(os.sched_getaffinity(0))
    vm = spinning("kept", reservation="0.5")
    with pytest.raises(NoCapacity, match=r"kept for the host, 0\.5 are reserved by kept"):
        daemon.client.instances.create(
            small("spin", cpu={"count": cpus}, qos={"cpu": {"reservation": cpus - 0.5}}),
            name="no",
            start=True,
        )
    assert "no" not in daemon.names()
    ran = daemon.inn("set", "kept", "qos.cpu.reservation=2000m")
    assert (ran.status, "1 vCPU" in ran.err) == (2, True)
    for value in ("-1", "1.5GiB", "fast"):
        assert daemon.inn("set", "kept", f"qos.cpu.limit={value}").status == 2
    assert vm.refresh().data["spec"]["qos"]["cpu"]["reservation"] == "0.5"


def test_somebody_removes_the_group_of_a_running_vm(
    daemon: Daemon, spinning: Callable[..., Instance]
) -> None:
    spinning("robbed", limit="400m")
    group = group_of(daemon, "robbed")
    before = group.pids()
    for path in group.paths:
        for pid in group.pids():
            with contextlib.suppress(ProcessLookupError):
                (path.parent.parent / "cgroup.procs").write_text(str(pid))
        eventually(lambda path=path: _removed(path), f"{path} can be removed", 5.0, every_s=0.01)
    shown = daemon.watch("robbed", lambda vm: "control group" in vm["status"]["note"], "says so")
    assert shown["state"] == "running"
    again = group_of(daemon, "robbed")
    assert before <= again.pids()
    quota = "cpu.max" if again.version("cpu") == 2 else "cpu.cfs_quota_us"
    eventually(lambda: (again.read("cpu", quota) or "").split()[0] == "40000", "its limit is back", 10.0)


def _removed(path: Path) -> bool:
    """Before the daemon looks and puts it back."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def test_copies_have_groups_of_their_own_and_the_parent_keeps_its(daemon: Daemon, ready: str) -> None:
    parent = group_of(daemon, ready)
    daemon.client.instances.handle(ready).fork(count=2)
    copies = [f"{ready}-1", f"{ready}-2"]
    try:
        places = {group_of(daemon, copy).paths[0] for copy in copies}
        assert len({*places, parent.paths[0]}) == 3
        assert daemon.status(ready)["pid"] in parent.pids()
    finally:
        for copy in copies:
            daemon.client.instances.handle(copy).remove(force=True)
    daemon.restart()
    assert group_of(daemon, ready).paths == parent.paths
    assert daemon.status(ready)["pid"] in parent.pids()


def test_a_user_without_control_groups_runs_vms_and_is_told(
    ordinary_user: User, fresh: Fresh, boot_disks: dict[str, Path]
) -> None:
    daemon = fresh(user=ordinary_user)
    disk = daemon.state / "disk.img"
    disk.write_bytes(boot_disks["halt"].read_bytes())
    disk.chmod(0o644)
    daemon.inn("run", disk, "-d", "--memory", "16MiB", "--name", "mine").ok()
    for refused in (
        daemon.inn("set", "mine", "qos.cpu.limit=0.5"),
        daemon.inn("create", disk, "--cpu-reservation", "500m"),
        daemon.inn("set", "mine", "qos.memory.swap=never"),
        daemon.inn("set", "mine", "qos.memory.reservation=16MiB"),
    ):
        assert refused.status == 4
        assert "Permission denied" in refused.err and "inn serve" in refused.err
    shown = daemon.inn("host", "show").ok().out
    assert shown.count("to get it:") == 1
    assert daemon.inn("doctor", "--json").json
