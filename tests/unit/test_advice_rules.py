"""The rules of advice: what they say at, above and below each threshold; they never go to and fro."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest
from advice_play import NOW, brief, cpu_rows, evidence, memory_rows, metrics, node, only, reasons, trial
from hypothesis import given, settings
from hypothesis import strategies as st

from innkeeper.control.advice import thresholds as T
from innkeeper.control.advice.disk import disk
from innkeeper.control.advice.memory import memory
from innkeeper.control.advice.numa import numa, ranges
from innkeeper.control.advice.pages import pages
from innkeeper.control.advice.rules import advise
from innkeeper.control.advice.vcpus import vcpus
from innkeeper.spec.advice import Advice, TrialState, Withheld
from innkeeper.spec.diskqos import LimitsInForce
from innkeeper.spec.memory import MemoryNow
from innkeeper.spec.metrics import NumaMetrics
from innkeeper.units import GiB, MiB, parse_size

HOUR = 60  # buckets


def test_thresholds_fit_each_other() -> None:
    """What is just below "fewer" of N is not above "more" of what would be left, for any N and small step."""
    for cpus in range(2, 256):
        left = cpus - max(1, cpus // T.STEP_PART)
        saturated = T.FEWER_AVERAGE * cpus / left > T.MORE_AVERAGE + 0.011
        assert not (saturated and T.FEWER_PEAK * cpus / left > T.MORE_PEAK)
    assert T.ROOMY * T.HEADROOM < T.FULL and 1 / T.HEADROOM < T.FULL


@pytest.mark.parametrize(
    ("cpus", "reading", "expected"),
    [
        # (average, peak) in CPUs of so many vCPUs
        (4, (1.51, 1.79), ("idle", {"cpu.count": 3})),  # 37.75 % and 44.75 %
        (4, (1.53, 1.79), ("fits", None)),  # 38.25 %
        (4, (1.51, 1.81), ("fits", None)),  # 45.25 %
        (16, (1.6, 3.2), ("idle", {"cpu.count": 12})),  # small steps: a quarter
        (8, (0.1, 0.3), ("idle", {"cpu.count": 6})),
        (2, (0.1, 0.8), ("idle", {"cpu.count": 1})),
        (1, (0.0, 0.1), ("fits", None)),  # never below one
        (4, (3.01, 3.61), ("busy", {"cpu.count": 5})),  # 75.25 % and 90.25 %
        (4, (2.99, 3.99), ("fits", None)),
        (4, (3.2, 3.59), ("fits", None)),
        (8, (7.9, 8.0), ("busy", {"cpu.count": 10})),
        (1, (0.9, 1.0), ("busy", {"cpu.count": 2})),
        (16, (15.9, 16.0), ("host", None)),  # as many as the host has CPUs
    ],
)
def test_c6(cpus: int, reading: tuple[float, float], expected: tuple[str, Any]) -> None:
    assert brief(only(vcpus(evidence(cpu_rows(cpus, *[reading] * HOUR))))) == expected


@pytest.mark.parametrize(
    ("cpus", "reading", "single"),
    [
        (2, (1.0, 1.02, 0.98), True),
        (8, (0.4, 1.0, 0.39), True),
        (2, (0.5, 0.91, 0.5), True),
        (2, (0.5, 0.89, 0.5), False),  # less than one CPU's worth
        (4, (1.0, 1.02, 0.3), True),  # moves about, and never takes more than one CPU
        (4, (1.0, 1.16, 1.0), False),
        (1, (1.0, 1.0, 1.0), False),
    ],
)
def test_a_single_threaded_load(cpus: int, reading: tuple[float, float, float], single: bool) -> None:
    said = only(vcpus(evidence(cpu_rows(cpus, *[reading] * HOUR))))
    assert (brief(said) == ("single-threaded", {"cpu.count": 1})) == single
    if single:
        assert isinstance(said, Advice) and f"near 1/{cpus}" in said.evidence and said.live
        assert said.command == "inn set web cpu.count=1"


def test_one_burst_of_many_threads_is_not_one_thread() -> None:
    rows = cpu_rows(4, *[(0.2, 0.6, 0.06)] * 50, *[(1.0, 3.0, 0.3)] * 9, (0.9, 1.0, 0.3))
    assert only(vcpus(evidence(rows))).reason == "fits"


@pytest.mark.parametrize(("count", "known"), [(29, False), (30, True)])
def test_a_least_amount_of_data(count: int, known: bool) -> None:
    said = only(vcpus(evidence(cpu_rows(4, *[(0.1, 0.2)] * count))))
    assert (said.reason != "data") == known
    if not known:
        assert isinstance(said, Withheld) and "29 min of the 30 min wanted" in said.what


def test_what_it_did_with_another_size_does_not_count() -> None:
    """So there is no new advice right after a change: the cool-down."""
    before, after = cpu_rows(4, *[(0.1, 0.2)] * 600), cpu_rows(3, *[(0.1, 0.2)] * 10)
    said = only(vcpus(evidence([*before, *after])))
    assert said.reason == "data" and isinstance(said, Withheld) and "10 min of the 30 min" in said.what
    assert only(vcpus(evidence([*before, *after * 3]))).reason == "idle"


def test_a_vm_that_waits_for_cpus_gets_no_more() -> None:
    rows = cpu_rows(2, *[(1.9, 2.0)] * HOUR, wait=0.201)
    said = only(vcpus(evidence(rows)))
    assert said.reason == "contended" and isinstance(said, Withheld) and "inn top --why web" in said.what
    assert only(vcpus(evidence(cpu_rows(2, *[(1.9, 2.0)] * HOUR, wait=0.199)))).reason == "busy"


@pytest.mark.parametrize(("runnable", "reason"), [(None, "busy"), (2.4, "parallelism"), (2.5, "busy")])
def test_more_only_where_tasks_queue(runnable: float | None, reason: str) -> None:
    assert only(vcpus(evidence(cpu_rows(2, *[(1.9, 2.0)] * HOUR), runnable=runnable))).reason == reason


def test_one_thread_on_one_vcpu_is_remembered() -> None:
    """It used one CPU of two; now it fills the one it has, and two would not help."""
    two, one = cpu_rows(2, *[(1.0, 1.02, 1.0)] * HOUR), cpu_rows(1, *[(0.99, 1.0)] * HOUR)
    said = only(vcpus(evidence(one, earlier=(*two, *one))))
    assert said.reason == "parallelism" and "with 2 vCPUs it used 1.02 CPUs at most" in said.what
    assert only(vcpus(evidence(one, earlier=(*two[:20], *one)))).reason == "busy"  # too little to know
    kept = trial(reason="single-threaded", state=TrialState.KEPT, ended_at=NOW - 3600)
    assert only(vcpus(evidence(one, trials=(kept,)))).reason == "parallelism"
    old = trial(reason="single-threaded", state=TrialState.KEPT, ended_at=NOW - T.REMEMBERED_S - 1)
    assert only(vcpus(evidence(one, trials=(old,)))).reason == "busy"


@pytest.mark.parametrize(
    ("state", "ago_s", "reason"),
    [
        (TrialState.REVERTED, 3600, "tried"),
        (TrialState.REVERTED, T.REMEMBERED_S + 1, "idle"),
        (TrialState.REFUSED, 600, "tried"),
        (TrialState.REFUSED, T.REFUSED_S + 1, "idle"),
        (TrialState.KEPT, 600, "idle"),
        (TrialState.UNJUDGED, 600, "idle"),
    ],
)
def test_what_did_not_work_is_not_advised_again_soon(state: TrialState, ago_s: float, reason: str) -> None:
    done = trial(state=state, ended_at=NOW - ago_s, outcome="worse, and put back")
    assert only(vcpus(evidence(cpu_rows(4, *[(0.1, 0.2)] * HOUR), trials=(done,)))).reason == reason


def test_its_own_limit_is_raised_rather_than_vcpus_added() -> None:
    rows = cpu_rows(2, *[(1.0, 1.0)] * HOUR, throttled=0.4, wait=0.8)
    said = only(vcpus(evidence(rows, spec={"qos": {"cpu": {"limit": "1"}}})))
    assert brief(said) == ("limited", {"qos.cpu.limit": "1.5"}) and isinstance(said, Advice) and said.live
    done = trial(reason="limited", state=TrialState.REVERTED, ended_at=NOW - 60)
    held = {"qos": {"cpu": {"limit": "1"}}}
    assert only(vcpus(evidence(rows, spec=held, trials=(done,)))).reason == "tried"
    assert brief(only(vcpus(evidence(rows)))) == ("host", None)
    assert only(vcpus(evidence(rows, spec={"qos": {"cpu": {"limit": "2"}}}))).reason == "fits"


def test_what_more_costs_is_said() -> None:
    rows = cpu_rows(2, *[(1.9, 2.0)] * HOUR)
    said = only(vcpus(evidence(rows, vcpus=16)))
    assert (
        isinstance(said, Advice) and "17 vCPUs on 16 CPUs" in said.effect and "94 % of a CPU" in said.effect
    )
    said = only(vcpus(evidence(rows, vcpus=10)))
    assert isinstance(said, Advice) and "11 vCPUs then, on 16 CPUs" in said.effect


def test_more_than_there_is_room_for_is_for_the_next_start() -> None:
    said = only(vcpus(evidence(cpu_rows(8, *[(7.9, 8.0)] * HOUR))))
    assert isinstance(said, Advice) and not said.live and "room for 8" in said.why_not_live
    said = only(vcpus(evidence(cpu_rows(2, *[(1.9, 2.0)] * HOUR), spec={"cpu": {"count": 2, "max": 2}})))
    assert isinstance(said, Advice) and said.command == "inn set web cpu.max=3 cpu.count=3"
    spec = {"cpu": {"count": 2, "sockets": 1, "cores": 2, "threads": 1}}
    said = only(vcpus(evidence(cpu_rows(2, *[(1.9, 2.0)] * HOUR), spec=spec)))
    assert said.reason == "capacity" and isinstance(said, Withheld) and "room for 2 vCPUs" in said.what


MODULES = MemoryNow(size=512 * MiB, start=256 * MiB, most=1024 * MiB, step=128 * MiB)


@pytest.mark.parametrize(
    ("average", "peak", "more", "expected"),
    [
        (461, 480, {}, ("full", {"memory.size": "640MiB"})),  # 90.04 %
        (460, 480, {}, ("fits", None)),  # 89.8 %
        (100, 255, {}, ("roomy", {"memory.size": "384MiB"})),  # one module, and 382.5 MiB are wanted
        (100, 257, {}, ("fits", None)),  # 50.2 %
        (200, 300, {"guest_swap_in": 300 * 1024.0}, ("swapping", {"memory.size": "640MiB"})),
        (200, 300, {"guest_swap_in": 200 * 1024.0}, ("fits", None)),
        (
            200,
            300,
            {"guest_swap_in": 3e5, "balloon": 480.0 * MiB},
            ("squeezed", {"qos.memory.reservation": "320MiB"}),
        ),
        (200, 300, {"guest_swap_in": 3e5, "balloon": 500.0 * MiB}, ("swapping", {"memory.size": "640MiB"})),
    ],
)
def test_memory_size(average: float, peak: float, more: dict[str, float], expected: tuple[str, Any]) -> None:
    rows = memory_rows(512 * MiB, peak=peak * MiB, working_set=average * MiB, **more)
    spec = {"memory": {"size": "512MiB", "max": "1GiB"}}
    said = only(memory(evidence(rows, status={"memory": MODULES}, spec=spec)))
    assert brief(said) == expected
    if isinstance(said, Advice) and "memory.size" in said.change:
        assert said.live and said.command == f"inn set web memory.size={said.change['memory.size']}"


def test_memory_that_is_not_known_or_cannot_change() -> None:
    assert only(memory(evidence(memory_rows(512 * MiB)))).reason == "unknown"
    assert only(memory(evidence(memory_rows(512 * MiB, count=10)))).reason == "data"
    rows = memory_rows(1024 * MiB, working_set=100.0 * MiB, peak=200.0 * MiB)
    said = only(memory(evidence(rows, least_memory=600 * MiB)))
    assert brief(said) == ("roomy", {"memory.size": "768MiB"})
    assert isinstance(said, Advice) and not said.live and "without memory.max" in said.why_not_live
    assert only(memory(evidence(rows, least_memory=1010 * MiB))).reason == "fits"
    done = trial(kind="memory", reason="roomy", state=TrialState.REVERTED, ended_at=NOW - 60)
    assert only(memory(evidence(rows, trials=(done,)))).reason == "tried"


def test_memory_the_host_does_not_have() -> None:
    rows = memory_rows(64 * GiB, working_set=63.0 * GiB, peak=64.0 * GiB)
    host = evidence(rows).host
    assert host is not None
    short = host.model_copy(update={"memory_available_bytes": 1 * GiB})
    said = memory(evidence(rows))[0]
    assert brief(said) == ("full", {"memory.size": "80GiB"})
    found = evidence(rows)
    assert only(memory(replace(found, host=short))).reason == "capacity"


def test_memory_the_host_swaps() -> None:
    rows = memory_rows(
        1 * GiB, working_set=600.0 * MiB, peak=700.0 * MiB, swapped=100.0 * MiB, major_faults=40.0
    )
    first, second = memory(evidence(rows))
    assert brief(first) == ("host-swaps", {"qos.memory.reservation": "608MiB"}) and second.reason == "fits"
    held = {"qos": {"memory": {"reservation": "608MiB"}}}
    assert memory(evidence(rows, spec=held))[0].reason == "host"
    assert memory(evidence(rows, spec={"qos": {"memory": {"limit": "512MiB"}}}))[0].reason == "capacity"
    idle = memory_rows(1 * GiB, working_set=600.0 * MiB, peak=700.0 * MiB, swapped=100.0 * MiB)
    assert len(memory(evidence(idle))) == 1  # swapped out and not missed


SHARED = {"qos": {"disk": {"total_bytes": "100MiB/s"}}}
OWN = {"disks": [{"name": "data", "size": "1GiB", "qos": {"read_ops": "500/s"}}]}
HELD = {"data": LimitsInForce(read_ops=500)}


@pytest.mark.parametrize(
    ("high", "expected"),
    [
        (11, ("fits", None)),  # of 60 buckets: 18 % and 20 %
        (12, ("throttled", {"qos.disk.total_bytes": "200MiB/s"})),
    ],
)
def test_a_disk_at_its_limit(high: int, expected: tuple[str, Any]) -> None:
    rows = [
        *memory_rows(256 * MiB, high, disk_read=60.0 * MiB, disk_write=35.1 * MiB),  # 95.1 %
        *memory_rows(256 * MiB, 60 - high, disk_read=60.0 * MiB, disk_write=34.9 * MiB),
    ]
    said = only(disk(evidence(rows, spec=SHARED)))
    assert brief(said) == expected
    if isinstance(said, Advice):
        assert said.live and said.command == "inn set web qos.disk.total_bytes=200MiB/s"
        assert "its limit of 100MiB/s or more 20 % of 60 min" in said.evidence


def test_which_disk_limits_can_be_judged() -> None:
    rows = memory_rows(256 * MiB, disk_read=1.0, disk_read_ops=499.0)
    assert disk(evidence(rows)) == []  # none
    said = only(disk(evidence(rows, spec=OWN, status={"disk_limits": HELD})))
    assert brief(said) == ("throttled", {"disks.0.qos.read_ops": "1000/s"})
    several = {"disk_limits": {**HELD, "root": None}}
    assert only(disk(evidence(rows, spec=OWN, status=several))).reason == "unknown"
    both = {"qos": {"disk": {"total_bytes": "100MiB/s", "total_ops": 500}}}
    for limits in (SHARED, both):  # said once, however many there are
        assert only(disk(evidence(rows[:10], spec=limits))).reason == "data"
    burst = {"qos": {"disk": {"read_ops": 500, "read_ops_burst": 1000}}}
    assert only(disk(evidence(rows, spec=burst))).reason == "unknown"
    done = trial(kind="disk", reason="throttled", state=TrialState.REVERTED, ended_at=NOW - 60)
    two = {"qos": {"disk": {"read_ops": 500}}}
    assert only(disk(evidence(rows, spec=two, trials=(done,)))).reason == "tried"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"host": {"thp_of_files": "advise"}}, ("small-pages", {"memory.thp": "always"})),
        ({"host": {"thp_of_files": "never"}}, ("host", None)),  # with thp=always it would not start
        ({}, ("host", None)),
        ({"host": {"numa": (node(0, (0, 1), 1024),)}}, ("small-pages", {"memory.hugepages": "2MiB"})),
        ({"host": {"numa": (node(0, (0, 1), 1023),)}}, ("host", None)),
        (
            {"host": {"numa": (node(0, (0, 1), 1023),), "thp_of_files": "within_size"}},
            ("small-pages", {"memory.thp": "always"}),
        ),
        ({"status": {"accelerator": "tcg"}}, ("fits", None)),
        ({"spec": {"memory": {"size": "2GiB", "thp": "never"}}}, ("host", None)),
        ({"seen": metrics(huge=1 * GiB)}, ("fits", None)),
        ({"seen": metrics(huge=None)}, ("unknown", None)),
    ],
)
def test_huge_pages(change: dict[str, Any], expected: tuple[str, Any]) -> None:
    rows = memory_rows(2 * GiB, demand=1.0)
    found = only(pages(evidence(rows, **{"seen": metrics(), **change})))
    assert brief(found) == expected


def test_no_huge_pages_for_the_small_the_idle_and_who_has_them() -> None:
    assert pages(evidence(memory_rows(512 * MiB, demand=1.0), seen=metrics(512 * MiB))) == []
    assert pages(evidence(memory_rows(2 * GiB, demand=0.4), seen=metrics())) == []
    spec = {"memory": {"size": "2GiB", "hugepages": "2MiB"}}
    assert pages(evidence(memory_rows(2 * GiB, demand=1.0), seen=metrics(), spec=spec)) == []


NODES = (node(0, (0, 1, 2, 3)), node(1, (4, 5, 6, 7)))


@pytest.mark.parametrize(
    ("local", "nodes", "change", "expected"),
    [
        (0.2, {0: 1.7 * GiB, 1: 0.3 * GiB}, {}, ("remote", {"cpu.pin": {"0": "0-3", "1": "0-3"}})),
        (0.79, {0: 1.7 * GiB, 1: 0.3 * GiB}, {}, ("remote", {"cpu.pin": {"0": "0-3", "1": "0-3"}})),
        (0.81, {0: 0.38 * GiB, 1: 1.62 * GiB}, {}, ("fits", None)),
        (0.2, {0: 0.04 * GiB, 1: 0.01 * GiB}, {}, ("fits", None)),  # a few MiB do not pay
        (0.5, {0: 1.0 * GiB, 1: 1.0 * GiB}, {}, ("host", None)),  # nowhere is most of it
        (0.2, {0: 1.7 * GiB, 1: 0.3 * GiB}, {"spec": {"cpu": {"count": 2, "pin": {0: "4"}}}}, ("host", None)),
        (0.2, {0: 1.7 * GiB}, {"host": {"numa": (node(0, (0,)), NODES[1])}}, ("capacity", None)),
        (0.2, {0: 1.7 * GiB}, {"host": {"numa": NODES, "cpu_ids": (1, 3, 4)}},
         ("remote", {"cpu.pin": {"0": "1,3", "1": "1,3"}})),
    ],
)  # fmt: skip
def test_numa(
    local: float, nodes: dict[int, float], change: dict[str, Any], expected: tuple[str, Any]
) -> None:
    seen = metrics(numa=NumaMetrics(local=local, nodes={key: round(value) for key, value in nodes.items()}))
    rows = cpu_rows(2, *[(1.0, 1.5)] * HOUR)
    said = only(numa(evidence(rows, **{"seen": seen, "host": {"numa": NODES}, **change})))
    assert brief(said) == expected
    if expected[0] == "remote":
        assert isinstance(said, Advice) and said.live and said.command.startswith("inn set web cpu.pin.0=")


def test_one_node_needs_no_advice() -> None:
    assert numa(evidence(cpu_rows(2, (1.0, 1.5)), host={"numa": NODES[:1]})) == []
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def test_the_most_urgent_comes_first_and_commands_are_ready_for_a_shell() -> None:
    rows = cpu_rows(4, *[(0.1, 0.2)] * HOUR, working_set=250.0 * MiB)
    found = advise(evidence(rows))
    assert reasons(found) == ["full", "idle"] and found.data_s == 3600
    for one in found.advice:
        words = shlex.split(one.command)
        assert words[:3] == ["inn", "set", "web"] and all("=" in word for word in words[3:])


# -- never to and fro --------------------------------------------------------------------------------


def _day(cpus: int, load: float, threads: int) -> list[Any]:
    """A day of a load that would use `load` CPUs in so many threads, on `cpus` vCPUs."""
    demand = min(load, float(threads), float(cpus))
    return cpu_rows(cpus, *[(demand, demand, min(1.0, demand / min(threads, cpus)))] * HOUR)


@settings(max_examples=300, deadline=None)
@given(
    cpus=st.integers(1, 16),
    load=st.floats(0.0, 16.0),
    threads=st.integers(1, 16),
    told=st.booleans(),
    peak=st.floats(1.0, 1.3),
)
def test_advice_that_is_followed_never_turns_back(
    cpus: int, load: float, threads: int, told: bool, peak: float
) -> None:
    """Of a constant load: however often it is followed, vCPUs never go up after they went down; and it comes
    to an end. `told`: the guest says how many tasks are runnable."""
    sizes, earlier = [cpus], []
    for _ in range(40):
        rows = _day(sizes[-1], load, threads)
        rows = [
            row.__class__(
                row.at, row.average, {**row.peak, "demand": min(row.peak["demand"] * peak, sizes[-1])}
            )
            for row in rows
        ]
        earlier += rows
        queue = min(load, float(threads)) if told else None
        said = only(vcpus(evidence(rows, earlier=tuple(earlier), runnable=queue)))
        if not isinstance(said, Advice):
            break
        sizes.append(said.change["cpu.count"])
    else:
        raise AssertionError(f"no end: {sizes}")
    turns = [
        (one < two) != (two < three) for one, two, three in zip(sizes, sizes[1:], sizes[2:], strict=False)
    ]
    # Without the guest's word a thread that fills its only vCPU is given one more, once, to see.
    may_turn = 1 if not told and sizes[0] == 1 else 0
    assert sum(turns) <= may_turn, sizes


@settings(max_examples=200, deadline=None)
@given(st.integers(4, 64), st.floats(1.0, 64.0), st.floats(1.0, 1.2), st.integers(1, 4))
def test_memory_advice_that_is_followed_never_turns_back(
    modules: int, needed: float, peak: float, step: int
) -> None:
    """In units of 128 MiB; a working set is never larger than what there is."""
    unit = 128 * MiB
    sizes = [modules * unit]
    for _ in range(80):
        size = sizes[-1]
        working_set = min(needed * unit, 0.97 * size)
        rows = memory_rows(size, working_set=working_set, peak=min(working_set * peak, size))
        now = MemoryNow(size=size, start=unit, most=1024 * unit, step=step * unit)
        spec = {"memory": {"size": size, "max": 1024 * unit}}
        said = only(memory(evidence(rows, status={"memory": now}, spec=spec)))
        if not isinstance(said, Advice):
            break
        sizes.append(parse_size(said.change["memory.size"]))
    else:
        raise AssertionError(f"no end: {sizes}")
    turns = [
        (one < two) != (two < three) for one, two, three in zip(sizes, sizes[1:], sizes[2:], strict=False)
    ]
    assert not any(turns), sizes
