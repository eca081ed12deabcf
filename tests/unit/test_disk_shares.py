"""Shares of disks: the weight of a VM's control group, and whether the host's disk knows any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fakes.cgroups import FakeHost
from fakes.world import World
from helpers import run
from innkeeper.agent import sysfs
from innkeeper.agent.qos import disk
from innkeeper.agent.qos.disk import weight_of, why_not
from innkeeper.agent.qos.enforce import enforce
from innkeeper.drivers.cgroup import Cgroups
from innkeeper.drivers.cgroupvalues import IoWeight, writes

V1, V2 = ("cpu", "cpuacct", "memory", "blkio"), ("cpu", "memory", "io")
NUMBER = "8:16"


def disk_under(place: Path, root: Path, schedulers: str, name: str = "sdb") -> None:
    """`place` is on a partition of that disk."""
    number = os.stat(place).st_dev
    device = root / "sys/devices/pci/block" / name
    (device / "queue").mkdir(parents=True)
    (device / "queue/scheduler").write_text(f"{schedulers}\n")
    (device / "dev").write_text(f"{NUMBER}\n")
    (device / f"{name}1").mkdir()
    (device / f"{name}1/partition").write_text("1\n")
    links = root / "sys/dev/block"
    links.mkdir(parents=True)
    (links / f"{os.major(number)}:{os.minor(number)}").symlink_to(device / f"{name}1")
    (root / "sys/block").mkdir()
    (root / "sys/block" / name).symlink_to(device)


def test_normal_is_what_a_group_has_that_was_told_nothing() -> None:
    assert [weight_of(shares) for shares in (500, 1000, 2000, 1, 100_000)] == [50, 100, 200, 1, 10_000]
    (usual,), (more,) = writes(IoWeight(100), 1), writes(IoWeight(200), 1)
    assert not usual.needed and more.needed, "a kernel without weights is told only to who asked for some"


@pytest.mark.parametrize(
    ("schedulers", "told"),
    [
        ("none mq-deadline [bfq]", ""),
        ("[mq-deadline] bfq none", "the scheduler of sdb is mq-deadline, which knows no shares; echo bfq >"),
        ("[none] mq-deadline", "the scheduler of sdb is none, which knows no shares; modprobe bfq; echo bfq"),
    ],
)
def test_the_scheduler_of_the_disk_says(tmp_path: Path, schedulers: str, told: str) -> None:
    host = FakeHost(tmp_path / "host", v1=V1)
    disk_under(tmp_path, host.root, schedulers)
    found = why_not(host.detect(), [tmp_path])
    assert found.startswith(told) and bool(found) == bool(told)


@pytest.mark.parametrize(("line", "kept"), [("enable=1 ctrl=auto", True), ("enable=0 ctrl=user", False)])
def test_a_cost_model_needs_no_scheduler(tmp_path: Path, line: str, kept: bool) -> None:
    host = FakeHost(tmp_path / "host", v2=V2)
    disk_under(tmp_path, host.root, "[none] mq-deadline")
    (host.top / "io.cost.qos").write_text(f"8:0 enable=1\n{NUMBER} {line}\n")
    assert (why_not(host.detect(), [tmp_path]) == "") is kept


def test_what_is_on_no_disk_has_no_shares_of_one(tmp_path: Path) -> None:
    host = FakeHost(tmp_path / "host", v2=V2)
    assert "is no disk of this host" in why_not(host.detect(), [tmp_path])


@pytest.mark.parametrize("schedulers", ["none [bfq]", "[none] bfq"])
def test_it_is_written_where_it_holds_and_said_where_not(tmp_path: Path, schedulers: str) -> None:
    async def scenario() -> None:
        host, world = FakeHost(tmp_path / "host", v1=V1), World(tmp_path)
        world.cgroups = host.detect()
        disk_under(tmp_path, host.root, schedulers)
        async with world.daemon() as ctx:
            usual = (await world.create("usual")).record.uid
            more = (await world.create("more", spec={"qos": {"disk": {"shares": "high"}}})).record.uid
            found = enforce(ctx)
            assert found[usual]["disk"] == ""
            group = world.cgroups.get(more)
            assert group is not None
            weight = group.read("io", "blkio.bfq.weight")
            if "[bfq]" in schedulers:
                assert (found[more]["disk"], weight) == ("", "200")
            else:
                assert "knows no shares" in found[more]["disk"] and weight == "100"

    run(scenario())


def test_each_disk_of_the_host_is_asked_once_for_all_vms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at every two seconds."""

    async def scenario() -> None:
        host, world = FakeHost(tmp_path / "host", v1=V1), World(tmp_path)
        world.cgroups = host.detect()
        disk_under(tmp_path, host.root, "none [bfq]")
        async with world.daemon() as ctx:
            for number in range(4):
                await world.create(f"vm{number}", spec={"qos": {"disk": {"shares": "high"}}})
            asked: list[Path] = []
            plain = sysfs.read_text

            def read(path: Path) -> str:
                asked.append(path)
                return plain(path)

            monkeypatch.setattr(sysfs, "read_text", read)
            assert len(disk.decide(ctx)) == 4 and [path.name for path in asked] == ["scheduler"]

    run(scenario())


def test_a_host_without_groups_says_so_to_who_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        world.cgroups = Cgroups()
        async with world.daemon() as ctx:
            usual = (await world.create("usual")).record.uid
            more = (await world.create("more", spec={"qos": {"disk": {"shares": 300}}})).record.uid
            found = enforce(ctx)
            assert found[usual]["disk"] == "" and "no control groups" in found[more]["disk"]

    run(scenario())
