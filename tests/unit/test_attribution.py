"""Why a VM was slow: what each situation is taken for, and what holds of all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from innkeeper.agent.attribution.judge import HELD, why
from innkeeper.agent.attribution.parties import DiskLimit, HostParty, Party, Scene
from innkeeper.agent.attribution.timeline import Timeline, known_mean, mean
from innkeeper.agent.sampling.ring import Row
from innkeeper.errors import WrongState
from innkeeper.spec.qos import Qos
from innkeeper.spec.why import Cause, Why

STEP_S = 5
GiB = 1 << 30
Values = Mapping[str, float]


def line(*values: Values | None, first: int = 0) -> Timeline:
    """A row for each step from `first` on; None: it did not run then."""
    rows = [Row((first + at) * STEP_S, one, one) for at, one in enumerate(values) if one is not None]
    return Timeline(rows, STEP_S)


def vm(name: str, *values: Values | None, qos: Mapping[str, Any] | None = None, **fields: Any) -> Party:
    return Party(name, f"uid-{name}", line(*values), qos=Qos.model_validate(qos or {}), **fields)


def busy(used: float, waited: float = 0.0, **more: float) -> dict[str, float]:
    """One vCPU."""
    return {"cpu": used + 0.01, "vcpu0": used, "wait": waited, "major_faults": 0.0, **more}


def host(used: float, **more: float) -> dict[str, float]:
    return {"cpu": used, "stolen": 0.0, "memory_used": 4.0 * GiB, "swapped_in": 0.0, **more}


def asked(victim: Party, *others: Party, told: tuple[Values, ...] = (), cpus: int = 2) -> Why:
    steps = max(len(victim.timeline.stamps), 1)
    rows = told or (host(2.0),) * steps
    scene = Scene(victim, others, HostParty(line(*rows), cpus, 8 * GiB), 0.0, float(steps * STEP_S), STEP_S)
    return why(scene)


def cause(found: Why, resource: str) -> Cause:
    return next(one for one in found.causes if one.resource == resource)


def names(one: Cause) -> list[str]:
    return [user.name for user in one.users]


# -- CPU ----------------------------------------------------------------------------------------------


def test_others_take_the_cpus() -> None:
    found = asked(
        vm("web", busy(0.59, 0.41)), vm("batch", {"cpu": 1.35, "wait": 0.6}, qos={"cpu": {"shares": "high"}})
    )
    first = found.causes[0]
    assert found.verdict == "web waited 41 % of the time for a CPU: 3.0 of 2 CPUs were wanted"
    assert first.resource == "cpu" and first.lost == pytest.approx(0.41)
    assert [(one.name, one.shares, one.itself) for one in first.users[:2]] == [
        ("batch", "high", False),
        ("web", "normal", True),
    ]
    commands = [one.command for one in first.advice]
    assert commands == [
        "inn set web qos.cpu.reservation=1",
        "inn set web qos.cpu.shares=high",
        "inn set batch qos.cpu.limit=0.9",
    ]


def test_its_own_limit_holds_it() -> None:
    """The kernel's waiting includes what throttling took: that is told apart."""
    web = vm("web", busy(0.19, 0.8, throttled=0.75), qos={"cpu": {"limit": "250m"}})
    found = asked(web, vm("batch", {"cpu": 1.7, "wait": 0.1}))
    first = found.causes[0]
    assert first.resource == "cpu-limit" and first.lost == pytest.approx(0.75)
    assert found.verdict.startswith("its own limit of 0.25 CPUs held web 75 % of the time")
    assert [one.command for one in first.advice] == ["inn set web qos.cpu.limit=1"]
    assert cause(found, "cpu").lost == pytest.approx(0.05)


def test_a_limit_counts_though_a_crowded_host_lets_nobody_reach_it() -> None:
    """What it wanted beyond its limit others cannot have taken; and it is not wanted of the host."""
    row = {"cpu": 0.26, "vcpu0": 0.25, "wait": 1.74, "throttled": 0.0, "major_faults": 0.0}
    web = vm("web", row, vcpus=2, qos={"cpu": {"limit": "300m"}})
    found = asked(web, vm("batch", {"cpu": 1.7, "wait": 0.3}))
    assert found.causes[0].resource == "cpu-limit"
    assert found.causes[0].lost == pytest.approx(1.7 / 1.99)
    contended = cause(found, "cpu")
    assert contended.lost == pytest.approx(0.04 / 1.99)
    assert contended.numbers["host_wanted"] == pytest.approx(2.3 + 0.04)
    # Before the limit was set it had more than that, and then it did not hold it.
    early = vm("web", row | {"cpu": 0.9}, vcpus=2, qos={"cpu": {"limit": "300m"}})
    assert asked(early).causes[0].resource == "cpu"


def test_a_limit_that_nobody_here_set() -> None:
    found = asked(vm("web", busy(0.5, 0.5, throttled=0.5)))
    assert found.verdict.startswith("a limit of its control group held web 50 %")
    assert found.causes[0].advice[0].command == "" and found.causes[0].users[0].limit is None


def test_throttling_is_told_where_waiting_is_not_counted() -> None:
    row = {"cpu": 0.5, "vcpu0": 0.5, "throttled": 0.5}
    found = asked(vm("web", row, qos={"cpu": {"limit": 1}}))
    assert cause(found, "cpu-limit").lost == pytest.approx(0.5)
    assert cause(found, "cpu").lost is None and "CONFIG_SCHED_INFO" in cause(found, "cpu").missing


def test_a_limit_without_an_account_of_it_is_not_known() -> None:
    found = asked(vm("web", busy(0.3), qos={"cpu": {"limit": "0.5"}}))
    one = cause(found, "cpu-limit")
    assert one.lost is None and "no control group" in one.missing
    assert found.verdict.startswith("nothing that is counted held web up") and one.missing in found.verdict


def test_many_vcpus_of_which_half_get_nothing() -> None:
    """A share of the time is the same for one vCPU that gets half and four that get two."""
    row = {"cpu": 2.0, "wait": 2.0, **{f"vcpu{number}": 0.5 for number in range(4)}}
    assert asked(vm("web", row, vcpus=4)).causes[0].lost == pytest.approx(0.5)


def test_one_that_hardly_runs_has_hardly_waited() -> None:
    found = asked(vm("web", busy(0.01, 0.01)), vm("batch", {"cpu": 1.9}))
    assert cause(found, "cpu").lost == pytest.approx(0.01)
    assert found.verdict == "nothing held web up: it was idle" and not found.causes[0].advice


def test_the_host_above_takes_cpus() -> None:
    found = asked(vm("web", busy(0.8)), told=(host(1.0, stolen=0.5),))
    first = found.causes[0]
    assert first.resource == "stolen" and first.lost == pytest.approx(
        0.5 * 0.81 / (0.8 + 0.5 * 0.81), abs=0.2
    )
    assert "took 0.50 of its 2 CPUs" in found.verdict and first.advice[0].command == ""
    assert "whoever runs this host as a VM" in names(first)


def test_other_processes_of_the_host_take_the_cpus() -> None:
    found = asked(vm("web", busy(0.5, 0.5)), told=(host(2.0, merger=0.3),))
    used = {one.kind: one.used for one in found.causes[0].users}
    assert used == pytest.approx({"other": 1.19, "merger": 0.3, "instance": 0.51})
    assert any("top(1)" in one.effect for one in found.causes[0].advice)


def test_pinned_to_a_cpu_that_others_have() -> None:
    """Those on other CPUs took nothing from it."""
    web = vm("web", busy(0.5, 0.5), binding="pinned", host_cpus=frozenset({1}))
    near = vm("near", busy(0.5, 0.5), host_cpus=frozenset({1}))
    far = vm("far", busy(1.0), host_cpus=frozenset({0}))
    found = asked(web, near, far, told=(host(2.2),), cpus=4)
    assert "those it is pinned to were taken" in found.verdict
    assert names(found.causes[0]) == ["near", "web", "other processes of the host"]
    assert found.causes[0].advice[0].command == "inn set web cpu.pin="
    on_node = vm("web", busy(0.5, 0.5), binding="node", host_cpus=frozenset({1}))
    assert "of its NUMA node" in asked(on_node, told=(host(2.2),), cpus=4).verdict


def test_short_bursts_of_many() -> None:
    found = asked(vm("web", busy(0.2, 0.2)), vm("b", busy(0.4)), told=(host(0.7),))
    assert "many wanted one at the same moments, on average 0.9 of 2" in found.verdict


def test_who_used_it_when_it_was_lacking() -> None:
    """The time of the loss counts, not that before and after it."""
    web = vm("web", busy(0.1), busy(0.1), busy(0.1), busy(0.5, 0.5))
    early = vm("early", {"cpu": 1.0}, {"cpu": 1.0}, {"cpu": 1.0}, {"cpu": 0.1})
    late = vm("late", None, None, None, {"cpu": 1.3})
    found = asked(web, early, late, told=(host(1.2), host(1.2), host(1.2), host(2.0)))
    assert names(found.causes[0])[:3] == ["late", "web", "early"]
    assert found.causes[0].lost == pytest.approx(0.125)


def test_a_reservation_leaves_what_is_promised_to_others() -> None:
    promised = vm("db", {"cpu": 1.05, "wait": 0.0}, qos={"cpu": {"reservation": "1.05"}})
    found = asked(vm("web", busy(0.5, 0.5)), promised)
    commands = [one.command for one in found.causes[0].advice]
    assert "inn set web qos.cpu.reservation=0.7" in commands
    assert not any("db qos.cpu.limit" in command for command in commands)  # not below what it was promised
    full = vm("db", {"cpu": 1.2}, qos={"cpu": {"reservation": "1.4"}}, state="paused")
    commands = [one.command for one in asked(vm("web", busy(0.5, 0.5)), full).causes[0].advice]
    assert not any("reservation" in command for command in commands)


def test_no_command_that_this_host_would_refuse() -> None:
    web, batch = vm("web", busy(0.5, 0.5)), vm("batch", {"cpu": 1.4})
    scene = Scene(web, (batch,), HostParty(line(host(2.0)), 2, 8 * GiB, "no control groups"), 0.0, 5.0, 5)
    advice = why(scene).causes[0].advice
    assert [one.command for one in advice] == [""] and "no control groups; see inn doctor" in advice[0].effect


# -- memory -------------------------------------------------------------------------------------------


def test_memory_was_read_back() -> None:
    web = vm(
        "web", busy(0.3, blocked=0.4, major_faults=200.0, private=1.0 * GiB, resident=1.1 * GiB),
        memory_bytes=GiB,
    )  # fmt: skip
    batch = vm("batch", {"cpu": 0.1, "private": 5.0 * GiB})
    found = asked(web, batch, told=(host(0.5, memory_used=7.5 * GiB, swapped_in=200.0),))
    first = found.causes[0]
    assert first.resource == "memory" and first.lost == pytest.approx(0.4)
    assert "7.5 GiB of 8.0 GiB of the host's memory were in use" in found.verdict
    assert names(first)[:2] == ["batch", "the host itself, and pages that several VMs share"]
    commands = [one.command for one in first.advice]
    assert commands == ["inn set web qos.memory.reservation=1GiB", "inn set batch qos.memory.limit=3840MiB"]


def test_no_more_memory_is_to_be_reserved_than_the_host_can_promise() -> None:
    row = busy(0.3, blocked=0.4, major_faults=200.0, private=1.0 * GiB)
    told = (host(0.5, memory_used=7.5 * GiB),)

    def commands(*others: Party, **qos: Any) -> list[str]:
        web = vm("web", row, memory_bytes=GiB, qos={"memory": qos})
        return [one.command for one in asked(web, *others, told=told).causes[0].advice]

    assert commands(limit="2GiB") == ["inn set web qos.memory.reservation=1GiB"]
    assert commands(reservation="1GiB") == []
    large = vm("web", row, memory_bytes=250 * GiB)  # a large host keeps 1 GiB, no sixteenth, for itself
    scene = Scene(large, (), HostParty(line(*told), 2, 256 * GiB), 0.0, float(STEP_S), STEP_S)
    assert [one.command for one in why(scene).causes[0].advice] == [
        "inn set web qos.memory.reservation=250GiB"
    ]
    assert commands(vm("db", {"cpu": 0.1}, qos={"memory": {"reservation": "6720MiB"}})) == []
    kept = {"memory": {"reservation": "5GiB"}}  # may not be held to less than it reserves
    assert commands(vm("db", {"cpu": 0.1, "private": 4.9 * GiB}, qos=kept), reservation="1GiB") == []


def test_its_own_memory_limit() -> None:
    web = vm(
        "web", busy(0.3, pressure_memory=0.3, resident=0.5 * GiB), qos={"memory": {"limit": "512MiB"}},
        memory_bytes=GiB,
    )  # fmt: skip
    found = asked(web)
    assert found.causes[0].resource == "memory-limit"
    assert found.verdict.startswith("its own limit of 512 MiB of memory made web wait 30 %")
    assert found.causes[0].advice[0].command == "inn set web qos.memory.limit=1152MiB"


@pytest.mark.parametrize(
    ("more", "lost"),
    [
        ({}, 0.0),
        ({"major_faults": 0.1}, 0.0),
        ({"major_faults": 50.0}, None),  # nobody counts how long they took
        ({"refaults": 50.0}, None),
        ({"major_faults": 50.0, "blocked": 0.0}, None),  # begun before the kernel counted
        ({"major_faults": 50.0, "blocked": 0.2}, 0.2),
        ({"major_faults": 50.0, "pressure_memory": 0.0}, 0.0),
        ({"major_faults": 0.0, "pressure_memory": 0.1, "blocked": 0.2}, 0.1),
    ],
)
def test_what_is_known_of_waiting_for_pages(more: Values, lost: float | None) -> None:
    one = cause(asked(vm("web", busy(0.3, **more))), "memory")
    assert one.lost == (None if lost is None else pytest.approx(lost))
    assert bool(one.missing) is (lost is None)


def test_one_step_that_is_not_known_hides_nothing() -> None:
    """Of two steps one is not known: neither is the whole. Of thirty, it is."""
    faulty = busy(0.3, major_faults=50.0)
    assert cause(asked(vm("web", busy(0.3), faulty)), "memory").lost is None
    assert cause(asked(vm("web", *[busy(0.3)] * 29, faulty)), "memory").lost == 0.0


# -- disks --------------------------------------------------------------------------------------------


def disk(under_way: float, ops: float, size: float, storage: float | None = None) -> dict[str, float]:
    found = {"disk_time:vda": under_way, "disk_read": size, "disk_read_ops": ops}
    return found | ({} if storage is None else {"storage": storage})


VDA = {"device_busy:vda": 0.97, "device_bytes:vda": 100e6, "device_ops:vda": 1000.0}


def test_a_crowded_device() -> None:
    web = vm("web", busy(0.2, **disk(0.6, 50.0, 5e6, 5e6)), disks=True)
    batch = vm("batch", {"cpu": 0.3, **disk(8.0, 800.0, 80e6, 80e6)})
    cached = vm("cached", {"cpu": 0.3, **disk(0.1, 9000.0, 900e6, 0.0)})
    found = asked(web, batch, cached, told=(host(0.9, **VDA),))
    first = found.causes[0]
    assert (first.resource, first.device, first.lost) == ("disk", "vda", pytest.approx(0.6))
    assert found.verdict == (
        "web waited 60 % of the time for its disk on vda, 12 ms for each request; "
        "the device was busy 97 % of the time"
    )
    assert names(first) == ["batch", "other processes of the host", "web"]  # what the cache answers is no use
    assert first.users[0].used == pytest.approx(0.97 * 0.8)
    assert first.advice[0].command == "inn set batch qos.disk.total_ops=400"


def test_a_device_that_is_slow_rather_than_crowded_and_qemu_that_waits() -> None:
    web = vm("web", busy(0.2, **disk(0.6, 50.0, 5e6)), disks=True)
    quiet = VDA | {"device_busy:vda": 0.1}
    found = asked(web, told=(host(0.5, **quiet),))
    assert found.verdict.endswith("the device was busy only 10 % of the time: slow, not crowded")
    assert found.causes[0].advice == ()
    waits = vm("web", busy(0.2, wait_qemu=0.4, **disk(0.6, 50.0, 5e6)), disks=True)
    found = asked(waits, told=(host(0.5, **quiet),))
    assert found.verdict.endswith("QEMU's own threads waited 40 % of the time for a CPU")


def test_a_device_of_which_the_host_counts_nothing() -> None:
    row = {"disk_time:nfs4": 0.5, "disk_read": 2e6, "disk_read_ops": 10.0}
    first = asked(vm("web", busy(0.2, **row), disks=True), vm("b", {"cpu": 0.1, **row})).causes[0]
    assert (first.device, first.unit, first.capacity) == ("nfs4", "bytes/s", None)
    assert [(one.name, one.used) for one in first.users] == [("b", 2e6), ("web", 2e6)]


def test_a_busy_vcpu_does_not_wait_for_its_disk() -> None:
    """As iowait: only a CPU that stands idle waits."""
    found = asked(vm("web", busy(1.0, **disk(3.0, 50.0, 5e6)), disks=True), told=(host(1.1, **VDA),))
    assert cause(found, "disk").lost == 0.0
    assert found.verdict == "nothing held web up: it used 100 % of its 1 vCPU and can do no more with it"


def test_the_limit_of_its_own_disks() -> None:
    limit = DiskLimit("qos.disk.total_ops", "total_ops", 100.0)
    row = {**disk(2.0, 99.0, 5e6), "disk_held:vda": 2.0}
    found = asked(vm("web", busy(0.2, **row), disks=True, disk_limits=(limit,)), told=(host(0.5, **VDA),))
    assert found.causes[0].resource == "disk-limit" and cause(found, "disk").lost == 0.0
    assert "they may do 100 requests a second and did 99 requests a second" in found.verdict
    assert found.causes[0].advice[0].command == "inn set web qos.disk.total_ops=200"


def test_a_limit_that_has_bursts_or_is_of_one_disk() -> None:
    """The nearest limit counts, by what the disk it is of did."""
    root = DiskLimit("qos.disk.read_ops", "read_ops", 400.0, "disk_did:.read_ops")
    data = DiskLimit("disks.1.qos.read_ops", "read_ops", 100.0, "disk_did:data.read_ops", burst=150.0)
    told = {"disk_did:.read_ops": 20.0, "disk_did:data.read_ops": 98.0}
    row = {**disk(2.0, 118.0, 5e6), "disk_held:vda": 2.0, **told}
    web = vm("web", busy(0.2, **row), disks=True, disk_limits=(root, data))
    found = asked(web, told=(host(0.5, **VDA),))
    assert "they may do 100 requests a second and did 98 requests a second" in found.verdict
    command = "inn set web disks.1.qos.read_ops=200 disks.1.qos.read_ops_burst=200"
    assert [one.command for one in found.causes[0].advice] == [command]


def test_one_that_crowds_a_device_though_it_has_limits() -> None:
    """QEMU takes no limit of both directions beside one of reading."""
    web = vm("web", busy(0.2, **disk(0.6, 50.0, 5e6, 5e6)), disks=True)
    limit = DiskLimit("qos.disk.read_bytes", "read_bytes", 80e6)
    batch = vm("batch", {"cpu": 0.3, **disk(8.0, 800.0, 60e6, 60e6)}, disk_limits=(limit,))
    first = asked(web, batch, told=(host(0.9, **VDA),)).causes[0]
    assert first.advice[0].command == "inn set batch qos.disk.read_bytes=29297KiB/s"


def test_disks_that_were_not_asked_yet() -> None:
    one = cause(asked(vm("web", busy(0.2), disks=True)), "disk")
    assert one.lost is None and "not told twice" in one.missing
    assert not [one for one in asked(vm("web", busy(0.2))).causes if one.resource == "disk"]


# -- what it says of itself ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "state", "verdict"),
    [
        (busy(0.4), "running", "nothing held web up: it used 0.40 of its 1 vCPU"),
        (busy(0.0), "paused", "web is paused: inn resume web"),
        (busy(0.0), "hung", "QEMU of web does not answer; nothing that is counted held it up"),
        (busy(0.4), "stopped", "nothing held web up: it used 0.40 of its 1 vCPU"),  # a moment ago it ran
    ],
)
def test_nothing_held_it_up(row: Values, state: str, verdict: str) -> None:
    found = asked(vm("web", row, state=state), told=(host(0.5),))
    assert found.verdict == verdict and not any(one.advice for one in found.causes)


@pytest.mark.parametrize(
    ("state", "words"),
    [("running", "takes two readings"), ("stopped", "did not run"), ("pending", "did not run")],
)
def test_one_that_did_not_run(state: str, words: str) -> None:
    with pytest.raises(WrongState) as caught:
        asked(vm("web", state=state))
    assert words in caught.value.message and caught.value.hint


# -- what always holds --------------------------------------------------------------------------------

_share = st.floats(0, 1, allow_nan=False)
_any = st.floats(0, 5, allow_nan=False)


@st.composite
def _rows(draw: st.DrawFn) -> dict[str, float]:
    vcpus = draw(st.integers(1, 4))
    row = {f"vcpu{number}": draw(_share) for number in range(vcpus)}
    row["cpu"] = sum(row.values()) + draw(_share)
    for name, values in (
        ("wait", _any), ("throttled", _any), ("wait_qemu", _any), ("pressure_memory", _share),
        ("blocked", _any), ("major_faults", _any), ("refaults", _any), ("disk_time:vda", _any),
        ("disk_held:vda", _any),
        ("disk_time:vdb", _any), ("disk_read", _any), ("disk_read_ops", _any), ("storage", _any),
        ("private", st.floats(0, 9e9)), ("resident", st.floats(0, 9e9)),
    ):  # fmt: skip
        if draw(st.booleans()):
            row[name] = draw(values)
    return row


@st.composite
def _hosts(draw: st.DrawFn) -> dict[str, float]:
    names = ("cpu", "stolen", "merger", "device_bytes:vda", "device_ops:vda", "swapped_in")
    row = {name: draw(_any) for name in names if draw(st.booleans())}
    row["memory_used"] = draw(st.floats(0, 8e9))
    return row | ({"device_busy:vda": draw(_share)} if draw(st.booleans()) else {})


_lines = st.lists(st.none() | _rows(), min_size=1, max_size=6)


@given(
    st.lists(_rows(), min_size=1, max_size=6), st.lists(_lines, max_size=4), st.lists(_hosts(), min_size=1)
)
def test_losses_and_users_stay_within_what_there_is(
    mine: list[Values], theirs: list[list[Values | None]], told: list[Values]
) -> None:
    others = [vm(f"vm{number}", *one) for number, one in enumerate(theirs)]
    limits = (DiskLimit("qos.disk.total_ops", "total_ops", 2.0),)
    found = asked(vm("web", *mine, disk_limits=limits), *others, told=tuple(told))
    known = [one.lost for one in found.causes if one.lost is not None]
    assert all(0.0 <= one <= 1.0 for one in known) and sum(known) <= 1.0 + 1e-9
    assert known == sorted(known, reverse=True)
    assert [one.lost is None for one in found.causes] == sorted(one.lost is None for one in found.causes)
    for one in found.causes:
        assert all(user.used >= 0 for user in one.users)
        assert [user.used for user in one.users] == sorted((user.used for user in one.users), reverse=True)
        if one.capacity is not None and one.resource != "cpu-limit":
            assert sum(user.used for user in one.users) <= one.capacity * (1 + 1e-9) + 1e-9
        assert not one.advice or (one.lost is not None and one.lost >= HELD)
        assert "nan" not in one.verdict and "inf" not in one.verdict
    # In whatever order they come, the answer is the same.
    assert asked(vm("web", *mine, disk_limits=limits), *reversed(others), told=tuple(told)) == found
    assert re.match(r"^\S", found.verdict) and "\n" not in found.verdict


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0, 9)), min_size=1))
@example([(1.5, 5e-324)])
def test_means_lie_between_what_they_are_of(pairs: list[tuple[float, float]]) -> None:
    values, weights = [one[0] for one in pairs], [one[1] for one in pairs]
    found = mean(values, weights)
    assert min(values) - 1e-6 <= found <= max(values) + 1e-6
    assert known_mean([None, *values], [1.0, *weights]) == pytest.approx(found, abs=1e-6)
    assert known_mean([None]) is None


def test_readings_on_both_sides_of_a_border_are_taken_for_one() -> None:
    told = line({"cpu": 1.0}, None, {"cpu": 3.0})
    assert [told.at(stamp).get("cpu") for stamp in (-1, 0, 1, 2, 3, 4)] == [1.0, 1.0, 1.0, 3.0, 3.0, None]
