"""Why a VM is slow, from real processes under a fake engine: what is read, kept and put together."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from test_sampler import SLEEPER, sampled
from test_sampling_reader import process

from helpers import run
from innkeeper.agent.attribution import judge
from innkeeper.agent.sampling.history import History
from innkeeper.agent.sampling.limits import Limits, done, held, in_force
from innkeeper.agent.sampling.rates import DiskRates, OneDiskRate
from innkeeper.errors import NotFound, WrongState
from innkeeper.spec.diskqos import LimitsInForce
from innkeeper.spec.why import Why


def test_who_ran_meanwhile(tmp_path: Path) -> None:
    """One that never rests and one that sleeps; one that has just ended is still known, one that was off
    is not."""

    async def scenario() -> None:
        with process() as busy, process() as other, process(SLEEPER) as idle:
            async with sampled(tmp_path) as one:
                for name, child in (("busy", busy), ("other", other), ("idle", idle)):
                    await one.world.create(name)
                    one.machine(name).pid = child.pid
                await one.world.create("off", on=False)
                await one.sampler.look()
                await one.world.create("new")
                one.machine("new").pid = other.pid
                new: Why = await one.sampler.why("new", 60.0)  # takes its two readings itself
                assert new.known_s > 0
                found: Why = await one.sampler.why("busy", 60.0)
                cpu = next(one for one in found.causes if one.resource == "cpu")
                assert cpu.lost is not None and cpu.capacity and cpu.capacity >= 1
                names = [one.name for one in cpu.users if one.kind == "instance"]
                assert set(names) >= {"busy", "other"} and "off" not in names and cpu.users[0].used > 0.05
                quiet = await one.sampler.why("idle", 60.0)
                assert quiet.verdict.startswith("nothing") and "idle" in quiet.verdict
                with pytest.raises(WrongState) as caught:
                    await one.sampler.why("off", 60.0)
                assert "did not run" in caught.value.message
                with pytest.raises(NotFound):
                    await one.sampler.why("gone", 60.0)

                history = one.ctx.paths.instance(one.ctx.records["other"].uid).history
                one.machine("other").die(0)
                for _ in range(500):
                    if history.exists() and one.ctx.records["other"].uid not in one.sampler._trackers:
                        break
                    await asyncio.sleep(0.01)
                after = await one.sampler.why("busy", 60.0)
                cpu = next(one for one in after.causes if one.resource == "cpu")
                assert "other" in [user.name for user in cpu.users]
                ended = await one.sampler.why("other", 3600.0)  # by the minute, and from its file
                assert ended.step_s == 60 and ended.state != "running"

    run(scenario())


def test_a_long_time_of_many_vms_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is read with turns for others between two VMs, and judged beside the event loop."""

    async def scenario() -> None:
        async with sampled(tmp_path) as one:
            with process(SLEEPER) as child:
                for number in range(5):
                    await one.world.create(f"vm{number}")
                    one.machine(f"vm{number}").pid = child.pid
                await one.metrics("vm0")
                turns, judged, read = 0, [], []

                async def turn() -> None:
                    nonlocal turns
                    while True:
                        turns += 1
                        await asyncio.sleep(0)

                def table(history: History, *args: Any, **more: Any) -> Any:
                    read.append(turns)
                    return plain(history, *args, **more)

                plain = History.table
                monkeypatch.setattr(History, "table", table)
                monkeypatch.setattr(judge, "why", lambda scene: judged.append(threading.current_thread()))
                other = asyncio.create_task(turn())
                await one.sampler.why("vm0", 86400.0)
                other.cancel()
                vms = read[:5]
                assert len(read) == 6 and sorted(set(vms)) == vms, read
                assert judged and judged[0] is not threading.main_thread()

    run(scenario())


def test_one_that_is_removed_while_it_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with sampled(tmp_path) as one:
            with process(SLEEPER) as child:
                await one.world.create("web")
                one.machine("web").pid = child.pid
                await one.metrics("web")

                async def refresh(_age_s: float) -> None:
                    one.ctx.records.pop("web", None)

                monkeypatch.setattr(one.sampler, "_refresh", refresh)
                with pytest.raises(NotFound):
                    await one.sampler.why("web", 60.0)

    run(scenario())


def test_disks_are_known_by_their_device(tmp_path: Path) -> None:
    async def scenario() -> None:
        with process(SLEEPER) as child:
            async with sampled(tmp_path) as one:
                await one.world.create("web")
                one.machine("web").pid = child.pid
                await one.metrics("web", after_s=0)
                tracker = next(iter(one.sampler._trackers.values()))
                assert set(tracker.devices) == {disk.name for disk in one.machine("web").plan.disks}
                assert one.sampler.host.devices == set(tracker.devices.values()) - {""}
                tracker.devices = {"root": "sda", "data": "sdb"}
                found = tracker._by_device(_rates(("root", 1.0), ("data", 2.0), ("seed", 4.0)))
                assert found["disk_time:sda"] == 1.0 and found["disk_bytes:sdb"] == 30.0
                assert not any("held" in name for name in found)
                tracker.devices = {"root": "sda", "data": "sda"}
                tracker.limits = (Limits(frozenset({"root"}), {"total_ops": 30.0}),)
                found = tracker._by_device(_rates(("root", 1.0), ("data", 2.0)))
                told = {"disk_did:root.total_ops": 30.0}
                assert found == {"disk_time:sda": 3.0, "disk_held:sda": 1.0} | told

    run(scenario())


def _rates(*each: tuple[str, float]) -> DiskRates:
    disks = tuple(OneDiskRate(name, 10.0, 20.0, 10.0, 20.0, 1.0, time) for name, time in each)
    return DiskRates(0.0, 0.0, 0.0, 0.0, 0.0, disks)


@pytest.mark.parametrize(
    ("most", "names"),
    [
        ({"total_ops": 30.0}, {"a"}),
        ({"total_ops": 33.0}, {"a"}),  # 91 % of it
        ({"total_ops": 40.0}, set()),
        ({"read_bytes": 10.0}, {"a"}),
        ({"write_bytes": 21.0, "read_ops": 99.0}, {"a"}),
        ({"write_ops": 30.0}, set()),
        ({}, set()),
    ],
)
def test_a_disk_at_its_limit(most: dict[str, float], names: set[str]) -> None:
    a, b = OneDiskRate("a", 10.0, 20.0, 10.0, 20.0, 99.0, 1.0), OneDiskRate("b", 5.0, 5.0, 5.0, 5.0, 0.0, 1.0)
    assert held([a, b], [Limits(frozenset({"a"}), most)]) == names
    both = Limits(frozenset({"a", "b"}), {"total_ops": 40.0}, shared=True)
    assert held([a, b], [both]) == {"a", "b"} and done([a, b], "total_ops") == 40.0
    large = Limits(frozenset({"a"}), {"total_ops": 50.0}, op_size=1)  # as many as bytes, then
    assert held([a], [large]) == set() and done([a], "total_ops", 1) == 30.0
    assert held([a], [Limits(frozenset({"b"}), {"read_ops": 1.0})]) == set()


def test_what_disks_are_held_to() -> None:
    shared = LimitsInForce.model_validate({"total_ops": 100, "shared": True})
    own = LimitsInForce.model_validate(
        {"read_bytes": "1MiB/s", "total_ops": 50, "total_ops_burst": 80, "op_size": 4096}
    )
    found = in_force({"root": shared, "data": own, "seed": shared, "free": None})
    assert sorted(found, key=lambda one: one.shared) == [
        Limits(
            frozenset({"data"}), {"read_bytes": float(1 << 20), "total_ops": 50.0}, {"total_ops": 80.0}, 4096
        ),
        Limits(frozenset({"root", "seed"}), {"total_ops": 100.0}, shared=True),
    ]
    assert in_force({}) == () and in_force({"root": None}) == ()
