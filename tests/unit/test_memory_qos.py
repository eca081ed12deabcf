"""Memory promised, limited and swapped: the values of control groups, v1 and v2, and what a VM is told."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from api_harness import FACTS, HOST
from pydantic import ValidationError

from fakes.cgroups import FakeHost
from fakes.world import World
from helpers import run
from innkeeper.agent.context import Running
from innkeeper.agent.qos import enforce as enforcement
from innkeeper.agent.qos.enforce import enforce
from innkeeper.agent.qos.keeper import QosKeeper
from innkeeper.agent.qos.memory import (
    PATIENCE_S,
    STEP_BYTES,
    Now,
    frozen_bytes,
    limit_now,
    low_bytes,
    most_bytes,
    over_limit,
    report,
    settings,
    waits,
    why_killed,
)
from innkeeper.agent.tune.balloon import View
from innkeeper.api.verbs.fork import ForkOptions, fork
from innkeeper.clock import SystemClock
from innkeeper.control import memoryadmission
from innkeeper.control.overcommit import check_reservation
from innkeeper.drivers import cgrouptree
from innkeeper.drivers.cgroupfiles import SystemFiles
from innkeeper.drivers.cgroupvalues import (
    MemoryHigh,
    MemoryLow,
    MemoryMax,
    MemoryMin,
    SwapMax,
    Swappiness,
    writes,
)
from innkeeper.engine.base import LaunchPlan, Machine
from innkeeper.errors import SpecError, Unsupported
from innkeeper.guest.agent import GuestAgent
from innkeeper.spec.host import QosSupport
from innkeeper.spec.instance import ForkOrigin, InstanceRecord, InstanceSpec, State, Wanted
from innkeeper.spec.qos import MemoryQos
from innkeeper.units import GiB, MiB

V1 = ("cpu", "cpuacct", "memory")
V2 = ("cpu", "memory", "io")


def spec(size: str = "256MiB", **qos: Any) -> InstanceSpec:
    return InstanceSpec.model_validate({"image": "tiny", "memory": {"size": size}, "qos": {"memory": qos}})


def record(uid: str, asked: InstanceSpec) -> InstanceRecord:
    return InstanceRecord(name=uid, uid=uid, created_at=0, host="h", spec=asked, wanted=Wanted())


# -- what is decided ---------------------------------------------------------------------------------


def test_nothing_asked_nothing_held() -> None:
    plain = spec()
    assert settings(plain, 0, Now(2, 100 * MiB, True)) == (
        MemoryMin(0), MemoryLow(0), MemoryHigh(None), MemoryMax(None), SwapMax(None),
    )  # fmt: skip
    assert settings(plain, 0, Now(1, 100 * MiB, True)) == (
        MemoryLow(0), MemoryMax(None), SwapMax(None, None), Swappiness(None),
    )  # fmt: skip


def test_the_whole_triple_under_v2() -> None:
    asked = spec(reservation="128MiB", limit="320MiB", swap="64MiB")
    assert settings(asked, 0, Now(2, None, True)) == (
        MemoryMin(128 * MiB),
        MemoryLow(128 * MiB),
        MemoryHigh(310 * MiB),
        MemoryMax(320 * MiB),
        SwapMax(64 * MiB),
    )
    assert settings(spec(swap="never"), 0, Now(2, None, True))[-1] == SwapMax(0)


def test_under_v1_what_is_reserved_is_not_swapped_out() -> None:
    held = settings(spec(reservation="128MiB"), 0, Now(1, None, True))
    assert held == (MemoryLow(128 * MiB), MemoryMax(None), SwapMax(None, None), Swappiness(0))
    assert settings(spec(swap="never"), 0, Now(1, None, True))[-1] == Swappiness(0)
    limited = settings(spec(limit="320MiB", swap="64MiB"), 0, Now(1, None, True))
    assert limited[1:3] == (MemoryMax(320 * MiB), SwapMax(64 * MiB, 320 * MiB))
    (total,) = writes(limited[2], 1)
    assert total.values == (("memory.memsw.limit_in_bytes", str(384 * MiB)),)


@pytest.mark.parametrize(
    ("used", "swap", "expected"),
    [
        (None, True, 256 * MiB),
        (200 * MiB, True, 256 * MiB),
        (300 * MiB, True, 256 * MiB),  # less than a step away
        (1024 * MiB, True, 1024 * MiB - STEP_BYTES),
        (1024 * MiB, False, 1032 * MiB),  # nothing can be taken from it, and it is not ended for that
    ],
)
def test_lowering_a_limit_ends_nobody(used: int | None, swap: bool, expected: int) -> None:
    now = Now(2, used, swap)
    assert limit_now(256 * MiB, now) == expected
    assert limit_now(None, now) is None
    told = over_limit(spec(limit="256MiB"), now)
    assert (told == "") is (used is None or used <= 256 * MiB)
    if used == 1024 * MiB:
        assert "it has 1.0 GiB, the limit is 256 MiB" in told and ("no swap" in told) is not swap


def test_without_swap_a_limit_is_approached_as_the_vm_gets_smaller_and_never_goes_back() -> None:
    limits, in_force = [], None
    for used in (300, 290, 310, 280, 150):
        in_force = limit_now(256 * MiB, Now(2, used * MiB, False, in_force=in_force))
        assert in_force is not None
        limits.append(in_force // MiB)
    assert limits == [308, 298, 298, 288, 256]
    assert limit_now(256 * MiB, Now(2, 300 * MiB, False, patient=True)) is None
    assert "balloon" in over_limit(spec(limit="256MiB"), Now(2, 100 * MiB, False, patient=True))


def test_what_copies_share_is_let_out_of_the_limit_of_the_parent() -> None:
    """It lies in the parent's account, whose own pages come on top of it."""
    asked = spec(limit="321MiB")
    now = Now(2, 500 * MiB, False, frozen=256 * MiB)
    assert settings(asked, 0, now)[3] == MemoryMax(577 * MiB) and over_limit(asked, now) == ""
    assert over_limit(asked, replace(now, used_bytes=600 * MiB)) != ""

    class Ram:
        reclaimable = False

        def ram_backing(self) -> dict[tuple[int, int], int]:
            return {(0, 1): 200 * MiB, (0, 2): 56 * MiB}

    there = Running(cast(Machine, Ram()), "u", cast(GuestAgent, None))
    parent = record("p", asked)
    assert frozen_bytes(parent, there) == 256 * MiB
    origin = ForkOrigin(parent="p", parent_uid="p", moment="0" * 16, live=True)
    copy = parent.model_copy(update={"fork": origin})
    assert frozen_bytes(copy, there) == 0
    Ram.reclaimable = True
    assert frozen_bytes(parent, there) == 0

    # It has RAM of its own again, and the copies still have that of the moment, once for all of them.
    class View:
        ram_private = True

        def ram_backing(self) -> dict[tuple[int, int], int]:
            return {(0, 9): 100 * MiB}

    viewer = Running(cast(Machine, View()), "c", cast(GuestAgent, None))
    assert frozen_bytes(parent, there, [viewer, viewer]) == 100 * MiB
    Ram.reclaimable = False
    assert frozen_bytes(parent, there, [viewer]) == 356 * MiB
    View.ram_private = False  # moved out into RAM of its own
    assert frozen_bytes(parent, there, [viewer]) == 256 * MiB


def test_no_limit_is_in_force_while_two_processes_have_the_memory() -> None:
    now = Now(1, 500 * MiB, False, in_force=256 * MiB, moving=True)
    assert limit_now(256 * MiB, now) is None
    assert "handed over" in over_limit(spec(limit="256MiB"), now)


def test_a_balloon_has_a_while_to_reach_the_limit() -> None:
    asked = spec(limit="200MiB")
    there = Running(cast(Machine, SimpleNamespace(accelerator="kvm")), "u", cast(GuestAgent, None))
    assert waits(asked, None, 0.0)  # about to start
    assert waits(asked, there, 100.0)  # not heard of yet
    seen = View("follows", "", 256 * MiB, 256 * MiB, 256 * MiB)
    for view, expected in (
        (seen, True),
        (replace(seen, left=137 * MiB), True),
        (replace(seen, left=136 * MiB), False),
        (replace(seen, left=136 * MiB, hollow=True), True),  # moved a moment ago
        (replace(seen, standing="barred"), False),
        (replace(seen, standing="silent"), True),
        (replace(seen, standing="silent", overdue=True), False),
        (replace(seen, standing="ignores"), False),
    ):
        there.balloon = view
        assert waits(asked, there, 110.0) is expected, view
    # What it translated counts, too.
    there.plan = cast(LaunchPlan, SimpleNamespace(balloon=True, translated_bytes=64 * MiB))
    there.balloon = replace(seen, left=136 * MiB)
    assert waits(asked, there, 110.0)
    there.balloon = replace(seen, left=72 * MiB)
    assert not waits(asked, there, 110.0)
    there.balloon = seen
    assert waits(asked, there, 100.0 + PATIENCE_S)
    assert not waits(asked, there, 100.1 + PATIENCE_S)
    assert waits(spec(limit="190MiB"), there, 300.0)  # another one: from now on
    for other in (spec(limit="321MiB"), spec(limit="200MiB", balloon="never"), spec()):
        assert not waits(other, there, 100.0)


def test_a_lower_limit_is_reached_step_by_step() -> None:
    used, steps = 1000 * MiB, 0
    while (limit := limit_now(256 * MiB, Now(2, used, True))) != 256 * MiB:
        assert limit is not None and limit < used
        used, steps = limit, steps + 1
    assert steps == 11


def test_shares_by_mib_and_between_reservation_and_limit() -> None:
    alike = {"a": record("a", spec("1GiB", reservation="64MiB")), "b": record("b", spec("2GiB"))}
    assert low_bytes(alike, 2 * GiB) == {"a": 64 * MiB, "b": 0}
    asked = {
        "low": record("low", spec("1GiB", shares="low")),
        "high": record("high", spec("1GiB", shares="high")),
        "kept": record("kept", spec("1GiB", shares="low", reservation="900MiB")),
        "held": record("held", spec("1GiB", shares=100_000, limit="100MiB")),
    }
    found = low_bytes(asked, 2 * GiB + 128 * MiB)
    assert found["high"] == pytest.approx(4 * found["low"], rel=0.01)
    assert found["kept"] == 900 * MiB and found["held"] == 100 * MiB
    assert sum(found.values()) == pytest.approx(2 * GiB, rel=0.01)
    # A guest of twice the size has twice the claim.
    twice = low_bytes({"a": record("a", spec("1GiB", shares="low")), "b": record("b", spec("2GiB"))}, 2 * GiB)
    assert twice["b"] == pytest.approx(4 * twice["a"], rel=0.01)
    plenty = low_bytes(asked, 64 * GiB)
    assert plenty["low"] == most_bytes(asked["low"].spec)


def test_a_host_with_1000_vms() -> None:
    asked = {
        f"v{n}": record(f"v{n}", spec("1GiB", shares=("low", "normal", "high")[n % 3])) for n in range(1000)
    }
    begun = time.process_time()
    found = low_bytes(asked, 512 * GiB)
    assert time.process_time() - begun < 1.0
    assert sum(found.values()) <= 511 * GiB and found["v2"] == pytest.approx(4 * found["v0"], rel=0.01)


def test_the_balloon_takes_no_control_group() -> None:
    assert not MemoryQos(balloon="never").in_groups()
    assert MemoryQos(swap="never").in_groups() and MemoryQos(limit=GiB).in_groups()


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "limit", "told"),
    [
        ({"size": "256MiB"}, "128MiB", "QEMU alone may take 65.0 MiB"),
        ({"size": "256MiB"}, "129MiB", ""),
        ({"size": "16MiB"}, "81MiB", ""),
        ({"size": "16MiB"}, "64MiB", "lives with no less than 16.0 MiB"),
        ({"size": "256MiB", "locked": True}, "256MiB", "taken whole: 321 MiB"),
        ({"size": "256MiB", "locked": True}, "321MiB", ""),
        ({"size": "256MiB", "hugepages": "2MiB"}, "65MiB", ""),
        ({"size": "256MiB", "hugepages": "2MiB"}, "64MiB", "QEMU alone"),
    ],
)
def test_a_limit_nothing_lives_with_is_refused(memory: dict[str, Any], limit: str, told: str) -> None:
    asked = InstanceSpec.model_validate(
        {"image": "tiny", "memory": memory, "qos": {"memory": {"limit": limit}}}
    )
    if not told:
        check_reservation(asked)
        return
    with pytest.raises(SpecError, match=told) as refused:
        check_reservation(asked)
    assert "give at least" in refused.value.hint


@pytest.mark.parametrize(
    ("qos", "field"),
    [
        ({"reservation": "512MiB", "limit": "256MiB"}, "reservation"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "1.5 cores"}, "limit"),
        ({"swap": "sometimes"}, "swap"),
        ({"shares": 0}, "shares"),
    ],
)
def test_nonsense_is_refused(qos: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        spec(**qos)


def test_what_is_given_up_with_an_empty_value() -> None:
    assert MemoryQos.model_validate({"limit": "", "reservation": "", "swap": ""}) == MemoryQos()


def refusal(asked: InstanceSpec, **support: Any) -> str:
    facts = FACTS.model_copy(update={"qos": QosSupport(**support)})
    found = memoryadmission.objections(asked, HOST.model_copy(update={"facts": facts}))
    return " ".join(one.reason + one.hint for one in found)


def test_what_a_host_has_no_word_for_is_refused() -> None:
    without = {"memory": "no group may be made in /x: Permission denied", "hint": "systemd-run ..."}
    assert refusal(spec(), **without) == refusal(spec(balloon="never"), **without) == ""
    for qos in ({"limit": "256MiB"}, {"reservation": "64MiB"}, {"swap": "never"}, {"shares": "high"}):
        told = refusal(spec(**qos), **without)
        assert "Permission denied" in told and "systemd-run" in told
    # Locked memory is kept by itself.
    locked = {"image": "tiny", "memory": {"size": "64MiB", "locked": True}}
    kept = InstanceSpec.model_validate(locked | {"qos": {"memory": {"reservation": "64MiB"}}})
    assert refusal(kept, **without) == ""
    # Swap alone can be bounded under v2.
    assert "qos.memory.limit" in refusal(spec(swap="64MiB"), memory_version=1)
    assert refusal(spec(swap="64MiB"), memory_version=2) == ""
    assert refusal(spec(swap="64MiB", limit="256MiB"), memory_version=1) == ""


def test_what_a_vm_was_promised_before_is_not_asked_about_again() -> None:
    facts = FACTS.model_copy(update={"qos": QosSupport(memory="none here")})
    host = HOST.model_copy(update={"facts": facts})
    has = record("a", spec(limit="256MiB")).model_copy(update={"host": host.name})
    memoryadmission.refuse_change(has, spec("512MiB", limit="256MiB"), [host])
    memoryadmission.refuse_change(has, spec(), [host])
    with pytest.raises(Unsupported, match="none here"):
        memoryadmission.refuse_change(has, spec(limit="255MiB"), [host])


# -- in control groups -------------------------------------------------------------------------------


def file(host: FakeHost, name: str) -> str:
    (found,) = [path for path in host.root.glob(f"sys/fs/cgroup/**/*-*-*-*/{name}") if path.exists()]
    return found.read_text()


@pytest.mark.parametrize("version", [1, 2])
def test_written_and_taken_back(tmp_path: Path, version: int) -> None:
    async def scenario() -> None:
        host = FakeHost(tmp_path / "host", v2=V2) if version == 2 else FakeHost(tmp_path / "host", v1=V1)
        world = World(tmp_path)
        world.cgroups = host.detect()
        qos = {"reservation": "64MiB", "limit": "512MiB", "swap": "never"}
        async with world.daemon() as ctx:
            await world.create(spec={"memory": {"size": "256MiB"}, "qos": {"memory": qos}})
            assert set(enforce(ctx)[world.machine().plan.uid].values()) == {""}
            if version == 2:
                assert file(host, "memory.min") == str(64 * MiB)
                assert file(host, "memory.max") == str(512 * MiB)
                assert file(host, "memory.high") == str(496 * MiB)
                assert file(host, "memory.swap.max") == "0"
                parent = world.cgroups.bases["memory"].path
                assert (parent / "memory.min").read_text() == str(64 * MiB)
            else:
                assert file(host, "memory.limit_in_bytes") == str(512 * MiB)
                assert file(host, "memory.soft_limit_in_bytes") == str(64 * MiB)
                assert file(host, "memory.swappiness") == "0"
            changed = ctx.records["web"]
            ctx.records["web"] = changed.model_copy(update={"spec": spec()})
            enforce(ctx)
            if version == 2:
                assert (file(host, "memory.min"), file(host, "memory.max")) == ("0", "max")
                assert file(host, "memory.swap.max") == "max"
            else:
                assert file(host, "memory.limit_in_bytes") == "-1"
                assert file(host, "memory.swappiness") == "60"

    run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_a_limited_vm_is_forked_without_its_limit_in_the_way(tmp_path: Path, version: int) -> None:
    async def scenario() -> None:
        host = FakeHost(tmp_path / "host", v2=V2) if version == 2 else FakeHost(tmp_path / "host", v1=V1)
        world = World(tmp_path)
        world.cgroups = host.detect()
        seen: dict[str, str] = {}

        def limit(name: str = "web") -> str:
            group = world.cgroups.get(world.ctx.records[name].uid)
            assert group is not None
            file = "memory.max" if version == 2 else "memory.limit_in_bytes"
            return (group.places["memory"].path / file).read_text()

        def note(name: str) -> None:
            if name.endswith(".waiting"):
                seen[name] = limit()

        async with world.daemon() as ctx:
            ctx.checkpoint = note
            asked = {"memory": {"size": "256MiB"}, "qos": {"memory": {"limit": "384MiB"}}}
            await world.create(spec=asked)
            enforce(ctx)
            assert limit() == str(384 * MiB)
            await fork(world.repo, SystemClock(), "web", ForkOptions(until="running", timeout_s=10.0))
            while world.machine().ram_private or not ctx.running[world.machine().plan.uid].at_rest.is_set():
                await asyncio.sleep(0.001)
            free = "max" if version == 2 else "-1"
            assert seen == {"fork.waiting": free, "promote.waiting": free}
            enforce(ctx)
            assert limit("web-1") == str(384 * MiB)
            assert limit() == str((384 + 256) * MiB), "what the copy shares is in its account"
            await world.remove("web-1")
            enforce(ctx)
            assert limit() == str(384 * MiB)

    run(scenario())


def test_a_group_that_is_gone_or_refuses(tmp_path: Path) -> None:
    async def scenario() -> None:
        host, world = FakeHost(tmp_path / "host", v2=V2), World(tmp_path)
        world.cgroups = host.detect()
        async with world.daemon() as ctx:
            await world.create(spec={"qos": {"memory": {"reservation": "64MiB"}}})
            uid = world.machine().plan.uid
            host.fail["memory.min"] = errno.EIO
            ctx.records["web"] = ctx.records["web"].model_copy(update={"spec": spec(reservation="32MiB")})
            assert "Cannot set memory.min" in enforce(ctx)[uid]["memory"]
            host.fail.clear()
            assert enforce(ctx)[uid]["memory"] == ""
            group = world.cgroups.get(uid)
            assert group is not None
            for path in group.paths:
                host.end(world.machine().pid)
                host.destroy(path)
            assert enforce(ctx)[uid]["memory"] == "its control group was removed"

    run(scenario())


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_told_of_a_vm(tmp_path: Path, version: int) -> None:
    async def scenario() -> None:
        host = FakeHost(tmp_path / "host", v2=V2) if version == 2 else FakeHost(tmp_path / "host", v1=V1)
        world = World(tmp_path)
        world.cgroups = host.detect()
        async with world.daemon() as ctx:
            asked = {"reservation": "64MiB", "limit": "160MiB", "swap": "64MiB", "balloon": "never"}
            await world.create(spec={"memory": {"size": "256MiB"}, "qos": {"memory": asked}})
            enforce(ctx)
            group = world.cgroups.get(world.machine().plan.uid)
            assert group is not None
            place = group.places["memory"].path
            if version == 2:
                (place / "memory.swap.current").write_text("12288\n")
            else:
                (place / "memory.stat").write_text("cache 1\nrss 2\nswap 12288\n")
            said = report(ctx, ctx.records["web"])
            assert (said.used, said.swapped, said.not_in_force) == (4096, 12288, "")
            assert (said.limit, said.swap) == (160 * MiB, 64 * MiB)
            assert said.kept_by == ("min" if version == 2 else "not-swapped")
            # More than its limit, as after it was lowered: said until it is there.
            used = "memory.current" if version == 2 else "memory.usage_in_bytes"
            (place / used).write_text(str(200 * MiB))
            assert "it has 200 MiB, the limit is 160 MiB" in report(ctx, ctx.records["web"]).not_in_force
            assert set(enforce(ctx)[group.uid].values()) == {""}
            written = int(file(host, "memory.max" if version == 2 else "memory.limit_in_bytes"))
            assert written >= 160 * MiB

    run(scenario())


def test_a_guarantee_below_a_group_that_keeps_nothing_is_none(tmp_path: Path) -> None:
    """As of a user's systemd: memory.min of user@.service is 0 unless an administrator says otherwise."""
    folder = tmp_path / "user.slice/user@1000.service/innkeeper"
    folder.mkdir(parents=True)
    files = SystemFiles()
    assert cgrouptree.protected(folder, files) is None
    (tmp_path / "user.slice/memory.min").write_text("1048576\n")
    (tmp_path / "user.slice/user@1000.service/memory.min").write_text("max\n")
    assert cgrouptree.protected(folder, files) == 1048576
    (tmp_path / "user.slice/user@1000.service/memory.min").write_text("0\n")
    assert cgrouptree.protected(folder, files) == 0


def test_without_groups_only_who_asked_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon() as ctx:
            await world.create("plain")
            await world.create("asks", spec={"qos": {"memory": {"swap": "never"}}})
            told = {name: enforce(ctx)[ctx.records[name].uid]["memory"] for name in ("plain", "asks")}
            assert told["plain"] == "" and told["asks"]

    run(scenario())


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"memory.events": "low 0\nhigh 5\nmax 12\noom 1\noom_kill 1\n"}, "at its memory limit"),
        ({"memory.events": "low 0\nhigh 0\nmax 7\noom 0\noom_kill 1\n"}, "was out of memory"),
        ({"memory.events": "low 0\nhigh 0\nmax 3\noom 0\noom_kill 0\n"}, ""),
        ({}, ""),
    ],
)
def test_who_ended_it(tmp_path: Path, files: dict[str, str], told: str) -> None:
    host = FakeHost(tmp_path / "host", v2=V2)
    groups = host.detect()
    group = groups.create("u-u-u-u")
    for name, text in files.items():
        (group.places["memory"].path / name).write_text(text)
    assert told in why_killed(group) and bool(why_killed(group)) is bool(told)


def test_an_end_by_the_kernel_is_not_silent(tmp_path: Path) -> None:
    async def scenario() -> None:
        host, world = FakeHost(tmp_path / "host", v1=V1), World(tmp_path)
        world.cgroups = host.detect()
        async with world.daemon():
            await world.create()
            machine = world.machine()
            group = world.cgroups.get(machine.plan.uid)
            assert group is not None
            path = group.places["memory"].path
            (path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
            (path / "memory.failcnt").write_text("17\n")
            machine.die(-9)
            async with asyncio.timeout(5):
                while (view := await world.repo.view("web")).status.state is not State.STOPPED:
                    await asyncio.sleep(0.01)
            assert view.status.ended is not None
            assert view.status.ended.reason == "out-of-memory"
            assert "raise qos.memory.limit" in view.status.note

    run(scenario())


def test_a_limit_that_the_kernel_takes_long_to_reach_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes what is above from the group before the write returns, by way of the disk."""

    async def scenario() -> None:
        host, world = FakeHost(tmp_path / "host", v2=V2), World(tmp_path)
        world.cgroups = host.detect()
        async with world.daemon() as ctx:
            await world.create(spec={"memory": {"size": "256MiB"}})
            taken, begun, write = threading.Event(), threading.Event(), host.write

            def slowly(path: Path, text: str) -> None:
                if path.name == "memory.max":
                    begun.set()
                    assert taken.wait(10)
                write(path, text)

            monkeypatch.setattr(host, "write", slowly)
            ctx.records["web"] = ctx.records["web"].model_copy(update={"spec": spec(limit="512MiB")})
            looking = asyncio.ensure_future(QosKeeper(ctx).look())
            async with asyncio.timeout(10):
                while not begun.is_set():
                    await asyncio.sleep(0.001)
            assert not looking.done()
            taken.set()
            await looking
            assert file(host, "memory.max") == str(512 * MiB)
            # One that never ends is given up, and said.
            taken.clear()
            monkeypatch.setattr(enforcement, "DEADLINE_S", 0.05)
            ctx.records["web"] = ctx.records["web"].model_copy(update={"spec": spec(limit="500MiB")})
            outcome = await enforcement.enforce_aside(ctx)
            assert "still at it" in outcome[ctx.records["web"].uid]["memory"]
            taken.set()

    run(scenario())
