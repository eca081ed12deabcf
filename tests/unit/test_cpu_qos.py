"""CPU time of VMs: who is entitled to what, which weights and quotas follow, what a host cannot promise."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from api_harness import FACTS, HOST, record
from hypothesis import given
from hypothesis import strategies as st

from fakes.cgroups import FakeHost
from fakes.world import World
from helpers import run
from innkeeper.agent.ops.qos import report
from innkeeper.agent.qos import cpu, together
from innkeeper.agent.qos.keeper import REMADE_NOTE, QosKeeper
from innkeeper.agent.qos.together import Standing, Together, standing
from innkeeper.control import cpuadmission, forking
from innkeeper.drivers.cgroupvalues import WEIGHT_MAX, CpuLimit
from innkeeper.errors import NoCapacity, Unsupported
from innkeeper.spec.host import QosSupport
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, InstanceStatus, State
from innkeeper.store.view import InstanceView

Scenario = Callable[[World, FakeHost], Awaitable[None]]


def spec(cpus: int = 2, **qos: Any) -> InstanceSpec:
    return InstanceSpec.model_validate({"image": "tiny", "cpu": {"count": cpus}, "qos": {"cpu": qos}})


def named(name: str, cpus: int = 2, **qos: Any) -> InstanceRecord:
    return record(name).model_copy(update={"uid": name, "name": name, "spec": spec(cpus, **qos)})


def active(name: str, cpus: int = 2, **qos: Any) -> InstanceView:
    return InstanceView(named(name, cpus, **qos), InstanceStatus(state=State.RUNNING), 1)


# ---- values ----


def test_entitlements_and_weights_by_hand() -> None:
    records = {
        one.uid: one
        for one in (
            named("a", reservation="1"),
            named("b", shares="high"),
            named("c"),
            named("d", limit="100m"),
        )
    }
    entitled = cpu.entitled_cores(records, 1.9)
    assert entitled == pytest.approx({"a": 1.0, "b": 0.5333, "c": 0.2667, "d": 0.1}, abs=1e-3)
    weights = cpu.weights_of(entitled, {})
    assert weights == {"a": 1000, "b": 533, "c": 267, "d": 100}


def test_nobody_is_entitled_to_more_than_its_vcpus() -> None:
    records = {one.uid: one for one in (named("one", cpus=1, shares="high"), named("two", shares="low"))}
    assert cpu.entitled_cores(records, 4) == {"one": 1.0, "two": 2.0}


def test_weights_of_large_hosts_stay_in_proportion() -> None:
    weights = cpu.weights_of({"huge": 100.0, "small": 0.5, "none": 0.0}, {})
    assert weights == {"huge": 10_000, "small": 50, "none": 1}


@pytest.mark.parametrize(
    ("millicores", "expected"),
    [
        (None, CpuLimit(None)),
        (1500, CpuLimit(150_000, 100_000)),
        (10, CpuLimit(1000, 100_000)),
        (5, CpuLimit(1000, 200_000)),
        (1, CpuLimit(1000, 1_000_000)),
        (3, CpuLimit(1000, 333_334)),
    ],
)
def test_quotas(millicores: int | None, expected: CpuLimit) -> None:
    assert cpu.quota_of(millicores) == expected


@pytest.mark.parametrize(
    ("busy", "reserved", "cpus", "beside", "expected"),
    [
        (0, 0.0, 2, 0, Standing(100, 1.75)),  # never less than one process
        (3, 0.0, 2, 0, Standing(300, 1.75)),  # as many as are busy
        (1, 1.0, 2, 300, Standing(300, 1.0)),  # half of the host is reserved: as heavy as all the others
        (3, 1.0, 2, 200, Standing(600, 1.5)),  # and half of the rest is for two more that are busy
        (8, 1.75, 2, 300, Standing(2100, 1.75)),  # what is kept is left to the host, however many are busy
        (8, 5.0, 2, 300, Standing(2100, 1.75)),  # the host has lost CPUs
        (500, 0.0, 2, 0, Standing(10_000, 1.75)),
    ],
)
def test_all_together(busy: int, reserved: float, cpus: int, beside: int, expected: Standing) -> None:
    assert standing(busy, reserved, cpus, beside) == expected


@given(st.integers(0, 100), st.floats(0, 64), st.integers(1, 64), st.integers(0, 100_000))
def test_the_host_keeps_its_part_and_what_is_reserved_is_kept(
    busy: int, reserved: float, cpus: int, beside: int
) -> None:
    found = standing(busy, reserved, cpus, beside)
    most = cpu.capacity_cores(cpus)
    assert min(reserved, most) <= found.cores <= most
    if reserved and beside and found.weight < WEIGHT_MAX:
        got = cpus * found.weight / (found.weight + beside)
        assert got <= most + 1, "rounded up to the least weight there is"
        assert got >= min(reserved, most) - cpus / found.weight


def test_a_reservation_is_kept_from_siblings_where_the_host_is_busy_with_others() -> None:
    """Together they have little more than what one of them reserved: it gets that, not its part of it."""
    records = {"a": named("a", reservation="1"), "b": named("b")}
    all_of_it = cpu.entitled_cores(records, 1.75)
    squeezed = cpu.entitled_cores(records, 1.1)
    assert all_of_it == {"a": 1.0, "b": 0.75}
    assert squeezed["a"] == 1.0 and squeezed["b"] == pytest.approx(0.1)


# ---- admission ----


def refusal(wanted: InstanceSpec, others: list[InstanceView], count: int = 1, **facts: Any) -> str:
    host = HOST.model_copy(update={"facts": FACTS.model_copy(update={"cpus": 2, "cpu_ids": (), **facts})})
    found = cpuadmission.objections(wanted, host, others, but="new", count=count)
    return found[0].reason if found else ""


def test_a_reservation_is_refused_with_the_numbers() -> None:
    others = [
        active("web", reservation="1"),
        active("db", reservation="500m"),
        active("new", reservation="2"),
    ]
    others.append(InstanceView(named("off", reservation="2"), InstanceStatus(state=State.STOPPED), 1))
    assert refusal(spec(reservation="250m"), others) == ""
    told = refusal(spec(reservation="251m"), others)
    assert "251m cores are to be reserved, and 250m of its 2 can be" in told
    assert "250m is kept for the host, 1.5 are reserved by web (1), db (0.5)" in told
    assert "0.4 cores are to be reserved (0.2 each)" in refusal(spec(reservation="200m"), others, count=2)


def test_what_the_host_keeps_is_promised_to_nobody() -> None:
    assert refusal(spec(reservation="1.75"), []) == ""
    assert "1750m of its 2" in refusal(spec(reservation="2"), [])
    assert refusal(spec(16, reservation="15"), [], cpus=16) == ""
    assert "0.8 is kept" in refusal(spec(16, reservation="15.5"), [], cpus=16)


def test_shares_and_limits_cost_nothing() -> None:
    others = [active("web", reservation="1.9")]
    assert refusal(spec(shares="high", limit="1.5"), others) == ""
    assert refusal(spec(), others) == ""


def test_a_host_without_control_groups_promises_nothing() -> None:
    without = QosSupport(cpu="no group may be made in /x: Permission denied", hint="systemd-run ...")
    assert refusal(spec(), [], qos=without) == ""
    for qos in ({"shares": "high"}, {"limit": "1"}, {"reservation": "100m"}):
        assert "Permission denied" in refusal(spec(**qos), [], qos=without)
    host = HOST.model_copy(update={"facts": FACTS.model_copy(update={"qos": without})})
    with pytest.raises(Unsupported, match="cannot keep"):
        cpuadmission.refuse_change(active("new"), spec(limit="1"), [host], [])
    # What it has already, from another time, does not keep it from changing otherwise.
    cpuadmission.refuse_change(active("new", limit="1"), spec(limit="1"), [host], [])


def test_a_stopped_vm_may_reserve_what_the_host_could_keep() -> None:
    host = HOST.model_copy(update={"facts": FACTS.model_copy(update={"cpus": 2, "cpu_ids": ()})})
    others = [active("web", reservation="1.5")]
    off = InstanceView(named("new"), InstanceStatus(state=State.STOPPED), 1)
    cpuadmission.refuse_change(off, spec(reservation="1"), [host], others)
    with pytest.raises(NoCapacity):
        cpuadmission.refuse_change(active("new"), spec(reservation="1"), [host], others)
    with pytest.raises(NoCapacity):
        cpuadmission.refuse_change(off, spec(reservation="2"), [host], [])


def test_less_is_never_refused() -> None:
    """Of a VM that reserved more than its host can keep now: it has lost CPUs, or keeps more for itself."""
    host = HOST.model_copy(update={"facts": FACTS.model_copy(update={"cpus": 2, "cpu_ids": ()})})
    over = active("new", reservation="1.9")
    for qos in ({"reservation": "1.8"}, {"reservation": "1.9", "shares": "high"}, {"reservation": "0"}):
        cpuadmission.refuse_change(over, spec(**qos), [host], [active("web", reservation="1")])
    with pytest.raises(NoCapacity):
        cpuadmission.refuse_change(over, spec(reservation="1.95"), [host], [])


def test_copies_with_other_vcpus_keep_what_is_promised() -> None:
    copied = forking.with_cpus(spec(reservation="250m", limit="1.5"), 4)
    assert (copied.qos.cpu.reservation, copied.qos.cpu.limit) == (250, 1500)


# ---- written ----


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda pid: {0, 1})

    def play_it(scenario: Scenario) -> None:
        async def inside() -> None:
            host, world = FakeHost(tmp_path / "host", v2=("cpu", "memory", "io")), World(tmp_path)
            world.cgroups = host.detect()
            await scenario(world, host)

        run(inside())

    return play_it


def of(world: World, name: str, file: str) -> str:
    group = world.cgroups.get(world.ctx.records[name].uid)
    assert group is not None
    return group.read("cpu", file) or ""


def cpu_qos(**qos: Any) -> dict[str, Any]:
    return {"cpu": {"count": 2}, "qos": {"cpu": qos}}


def test_it_holds_before_the_vm_runs_and_changes_with_those_beside_it(
    play: Callable[[Scenario], None],
) -> None:
    async def scenario(world: World, host: FakeHost) -> None:
        async with world.daemon() as ctx:
            await world.create("a", spec=cpu_qos(limit="1.5"))
            assert of(world, "a", "cpu.max") == "150000 100000"
            assert of(world, "a", "cpu.weight") == "1500"
            await world.create("b", spec=cpu_qos(shares=500))
            # What starts has its own at once; the others follow with the keeper's next look.
            assert (of(world, "a", "cpu.weight"), of(world, "b", "cpu.weight")) == ("1500", "583")
            keeper = QosKeeper(ctx)
            await keeper.look()
            # 1.75 cores, 2:1
            assert (of(world, "a", "cpu.weight"), of(world, "b", "cpu.weight")) == ("1167", "583")
            parent = world.cgroups.bases["cpu"].path
            assert (parent / "cpu.weight").read_text() == "400"  # four vCPUs that boot
            host.writes.clear()
            await keeper.look()
            assert [one for one in host.writes if "cpu.max" in one or one.startswith("cpu.weight=1267")] == []
            said = report(ctx, ctx.records["a"]).cpu
            assert (said.shares, said.limit, said.entitlement) == (2000, "1.5", 1.167)
            world.cgroups.controllers["cpu"] = "not delegated"  # then nobody keeps what it comes to
            assert report(ctx, ctx.records["a"]).cpu.entitlement is None
            world.cgroups.controllers["cpu"] = ""
            await world.remove("b")
            await keeper.look()
            assert of(world, "a", "cpu.weight") == "1500"

    play(scenario)


async def changed(world: World, name: str, **qos: Any) -> None:
    """Raises what the daemon made of it."""

    def change(record: InstanceRecord, _: object) -> InstanceRecord:
        number = record.wanted.generation + 1
        wanted = record.wanted.model_copy(update={"generation": number, "change": number})
        asked = record.spec.model_copy(update={"qos": spec(**qos).qos})
        return record.model_copy(update={"spec": asked, "wanted": wanted})

    after = await world.repo.change_instance(name, change)
    await world.repo.settle(name, after.record.wanted.generation, 5.0)


def test_it_changes_while_the_vm_runs(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World, host: FakeHost) -> None:
        async with world.daemon():
            await world.create("a", spec=cpu_qos())
            for qos, expected in (({"limit": "250m"}, "25000 100000"), ({}, "max 100000")):
                world.engine.calls.clear()
                await changed(world, "a", **qos)
                assert of(world, "a", "cpu.max") == expected
                # Each question to a QEMU whose CPUs are busy may take seconds.
                assert [call for call in world.engine.calls if not call.startswith("run_state")] == []

    play(scenario)


def test_what_is_not_in_force_is_in_the_status(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World, host: FakeHost) -> None:
        host.fail["cpu.max"] = 5  # EIO
        async with world.daemon() as ctx:
            await world.create("a", spec=cpu_qos(limit="1"))
            await QosKeeper(ctx).look()
            assert "cpu.max" in (await world.repo.view("a")).status.qos["cpu"]
            assert "cpu.max" in report(ctx, ctx.records["a"]).cpu.not_in_force
            host.fail.clear()
            await QosKeeper(ctx).look()
            assert (await world.repo.view("a")).status.qos == {}

    play(scenario)


def test_a_group_made_anew_has_what_it_had(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World, host: FakeHost) -> None:
        async with world.daemon() as ctx:
            await world.create("a", spec=cpu_qos(limit="1"))
            keeper = QosKeeper(ctx)
            await keeper.look()
            group = world.cgroups.get(ctx.records["a"].uid)
            assert group is not None
            host.end(world.machine("a").pid)
            host.rmdir(group.paths[0])
            await keeper.look()
            assert of(world, "a", "cpu.max") == "100000 100000"

    play(scenario)


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "moved out"])
def test_a_change_does_not_wait_for_the_keeper_to_make_a_group_anew(
    play: Callable[[Scenario], None], removed: bool
) -> None:
    async def scenario(world: World, host: FakeHost) -> None:
        async with world.daemon() as ctx:
            await world.create("a", spec=cpu_qos(limit="1"))
            await QosKeeper(ctx).look()
            group = world.cgroups.get(ctx.records["a"].uid)
            assert group is not None
            host.end(world.machine("a").pid)
            if removed:
                host.rmdir(group.paths[0])
            await changed(world, "a", limit="700m")
            assert of(world, "a", "cpu.max") == "70000 100000" and group.pids() == {world.machine("a").pid}
            assert (await world.repo.view("a")).status.note == REMADE_NOTE

    play(scenario)


def test_idle_vms_do_not_make_the_others_heavier(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together.os, "sched_getaffinity", lambda pid: {0, 1})

    async def scenario(world: World, host: FakeHost) -> None:
        async with world.daemon() as ctx:
            for name in ("busy", "idle"):
                await world.create(name, spec=cpu_qos())
            known = Together()
            assert known.look(ctx, 100.0).weight == 400
            group = world.cgroups.get(ctx.records["busy"].uid)
            assert group is not None
            (group.paths[0] / "cpu.stat").write_text("usage_usec 4500000\n")
            assert known.look(ctx, 102.0).weight == 200
            assert known.look(ctx, 104.0).weight == 100

    play(scenario)


def test_a_thousand_vms_are_decided_in_no_time(play: Callable[[Scenario], None]) -> None:
    records = {one.uid: one for one in (named(f"vm-{number}", shares=500 + number) for number in range(1000))}
    begun = time.process_time()
    weights = cpu.weights_of(cpu.entitled_cores(records, 64.0), {})
    assert time.process_time() - begun < 0.2
    assert len(weights) == 1000
