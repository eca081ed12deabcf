"""Limits of disks: their units, what is refused, who is held to what, and the agent with a fake engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fakes.world import World
from helpers import run
from innkeeper.agent.inspect.throttling import Look, held_back_by
from innkeeper.agent.ops.disklimits import SHARED_GROUP, changes, throttle_of
from innkeeper.api.verbs.respec import carried_out, what_follows, with_spec
from innkeeper.cli import specargs
from innkeeper.cli.commands.set import changed_spec
from innkeeper.cli.limits import limits_shown
from innkeeper.engine.qemu.throttle import NAMES, arguments, in_force
from innkeeper.engine.throttle import Throttle
from innkeeper.errors import BadRequest, EngineError, SpecError
from innkeeper.spec.differences import differences
from innkeeper.spec.disklimits import drifted, limits_of
from innkeeper.spec.diskqos import LIMIT_FIELDS, MOST, DiskLimits, LimitsInForce
from innkeeper.spec.instance import InstanceSpec, InstanceStatus, Power, StopMode
from innkeeper.spec.livechange import effects
from innkeeper.units import GiB, KiB, MiB, format_ops, format_rate, parse_ops, parse_rate

# -- units ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [("50MiB/s", 50 * MiB), ("50MiB", 50 * MiB), ("100Mbit/s", 12_500_000), ("1Gbit/s", 125_000_000),
     ("8kibit/s", KiB), ("1.5 MB / s", 1_500_000), ("10 M/sec", 10 * MiB), (4096, 4096), ("4096", 4096),
     ("1MiB/s ", MiB)],
)  # fmt: skip
def test_rates(text: str | int, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "told"),
    [("-1", "Not a rate"), ("50MiB/h", "Not a rate"), ("50MiB/min", "Not a rate"), ("", "Not a rate"),
     ("fast", "Not a rate"), ("1 core", "Unknown unit"), ("1PiB/s", "Unknown unit"), (True, "Not a rate"),
     ("50Mb/s", "bits or bytes"), ("1Kib", "bits or bytes"), ("1bit/s", "whole number of bytes"),
     ("0.5", "whole number of bytes"), ("1e6", "Not a rate"), (1.5, "whole number"),
     ("500/s/s", "Not a rate")],
)  # fmt: skip
def test_no_rates(text: Any, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        parse_rate(text)


@given(st.integers(0, 10**16))
def test_a_rate_comes_back_as_it_was(rate: int) -> None:
    assert parse_rate(format_rate(rate)) == rate
    assert parse_ops(format_ops(rate)) == rate


@pytest.mark.parametrize("text", ["-5", "5.5/s", "5x", "", "5/min", True, "1e3", "\u0665"])
def test_no_operations(text: Any) -> None:
    with pytest.raises(BadRequest, match="operations per second"):
        parse_ops(text)


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"total_ops": 5, "read_ops": 5}, "total_ops is for reading and writing together"),
        ({"total_bytes": "1MiB", "write_bytes": "1MiB"}, "leave out it or write_bytes"),
        ({"total_ops": 10, "total_ops_burst": 9}, "total_ops_burst, 9/s, is less than total_ops, 10/s"),
        ({"total_ops_burst": 9}, "there is none: give total_ops"),
        ({"write_ops": 1, "read_ops_burst": 9}, "there is none: give read_ops"),
        ({"total_ops": 1, "total_ops_burst_length": "4s"}, "give total_ops_burst"),
        ({"op_size": "4KiB"}, "none are limited"),
        ({"total_bytes": "1MiB", "op_size": "4KiB"}, "none are limited"),
        ({"total_ops": 1, "op_size": 100}, "at least 512"),
        ({"total_ops": 0}, "would stop the disk"),
        ({"total_bytes": "50B/s"}, "a unit missing"),
        ({"total_bytes": MOST + 1}, "more than any disk does"),
        ({"total_ops": 1, "total_ops_burst": MOST, "total_ops_burst_length": 2}, "more than can be counted"),
        ({"total_ops": 1, "total_ops_burst": 2, "total_ops_burst_length": "1.5s"}, "whole seconds"),
        ({"total_ops": 1, "total_ops_burst": 2, "total_ops_burst_length": "0s"}, "whole seconds"),
        ({"total_ops": 1, "total_ops_burst": 2, "total_ops_burst_length": "2d"}, "up to a day"),
        ({"read_bytes": "-1MiB/s"}, "Not a rate"),
        ({"read_bytes": []}, "Not a rate"),
        ({"readbytes": 1}, "Extra inputs"),
    ],
)  # fmt: skip
def test_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DiskLimits.model_validate(fields)


@given(
    st.dictionaries(st.sampled_from(LIMIT_FIELDS), st.integers(512, MOST).map(lambda n: n), max_size=6),
)
def test_what_is_taken_comes_back_as_it_was(fields: dict[str, int]) -> None:
    try:
        limits = DiskLimits.model_validate(fields)
    except ValidationError:
        return
    assert DiskLimits.model_validate(limits.model_dump(mode="json")) == limits
    assert limits.limits == fields


def spec(**fields: Any) -> InstanceSpec:
    disks = fields.pop("disks", [{"name": "a", "size": "1MiB"}, {"name": "b", "size": "1MiB"}])
    return InstanceSpec.model_validate({"image": "tiny", "disks": disks, **fields})


def test_no_limits_are_no_limits() -> None:
    for none in ({}, "", None, {"total_ops": ""}, {"total_ops": None}):
        assert spec(disks=[{"name": "a", "size": "1MiB", "qos": none}]).disks[0].qos is None
    assert spec(qos={"disk": ""}).qos.disk == spec().qos.disk


# -- who is held to what -------------------------------------------------------------------------------


BOTH = spec(
    qos={"disk": {"total_ops": 500, "total_ops_burst": 900}},
    disks=[{"name": "a", "size": "1MiB", "qos": {"read_bytes": "1MiB/s"}}, {"name": "b", "size": "1MiB"}],
)


def test_a_disk_has_its_own_or_those_of_all() -> None:
    shared = LimitsInForce(total_ops=500, total_ops_burst=900, total_ops_burst_length=1, shared=True)
    assert limits_of(BOTH, "a") == LimitsInForce(read_bytes=MiB)
    assert limits_of(BOTH, "b") == shared
    assert limits_of(BOTH, "root") == shared, "a disk that the image brings"
    assert limits_of(spec(), "a") is None
    own = throttle_of(BOTH, "a")
    assert own is not None and own.group != SHARED_GROUP and own.limits == {"read_bytes": MiB}


def test_only_what_differs_is_set() -> None:
    own, shared = throttle_of(BOTH, "a"), throttle_of(BOTH, "b")
    assert changes(BOTH, {"a": None, "b": None}) == {"a": own, "b": shared}
    assert changes(BOTH, {"a": own, "b": shared}) == {}
    assert changes(spec(), {"a": own, "b": None}) == {"a": None}
    # What waits at a disk goes on by the new limits only when they are set at that disk.
    old = Throttle(SHARED_GROUP, {"total_ops": 1})
    assert changes(BOTH, {"a": own, "b": old, "c": old}) == {"b": shared, "c": shared}


@pytest.mark.parametrize(
    "fields", [{"read_ops": 7}, {"total_bytes": 9, "total_bytes_burst": 10, "op_size": 5}]
)
def test_qemus_names(fields: dict[str, int]) -> None:
    throttle = Throttle("g", fields)
    sent = arguments("dev", throttle)
    assert sent["id"] == "dev" and sent["group"] == "g"
    assert {name for name, value in sent.items() if value == 0} >= {"bps_wr", "iops_wr", "iops"}
    assert in_force(sent) == throttle
    assert in_force({**arguments("dev", None)}) is None and "group" not in arguments("dev", None)
    assert set(NAMES) == set(LIMIT_FIELDS)


def test_it_is_a_live_change() -> None:
    runs = InstanceStatus(disk_limits={"a": None, "b": None})
    changed = tuple(differences(spec(), BOTH))
    assert changed == ("disks.0.qos", "qos.disk.total_ops", "qos.disk.total_ops_burst")
    found = effects(changed, BOTH, runs)
    assert found.now == (*changed, "qos.disk") and not found.later
    assert effects(("disks.0.bus", "disks.1"), BOTH, runs).later == {"disks.0.bus": "", "disks.1": ""}
    more = BOTH.model_copy(update={"qos": spec().qos})
    assert differences(more, spec()) == ["disks.0.qos"]
    assert drifted(BOTH, runs) and not drifted(spec(), runs)
    held = {name: limits_of(BOTH, name) for name in ("a", "b")}
    assert not drifted(BOTH, InstanceStatus(disk_limits=held))
    again = InstanceStatus.model_validate_json(InstanceStatus(disk_limits=held).model_dump_json())
    assert again.disk_limits == held


# -- the agent -----------------------------------------------------------------------------------------


async def apply(world: World, wanted: InstanceSpec) -> InstanceStatus:
    follows = None

    def changed(record: Any, status: InstanceStatus) -> Any:
        nonlocal follows
        follows = what_follows(tuple(differences(record.spec, wanted)), wanted, status)
        return with_spec(record, wanted, follows) if follows.now or record.spec != wanted else None

    view = await world.repo.change_instance("web", changed)
    assert follows is not None
    return (await carried_out(world.repo, view, follows)).status


def limited(record_spec: InstanceSpec, **qos: Any) -> InstanceSpec:
    data = record_spec.model_dump(mode="json")
    data["disks"][0]["qos"] = qos.get("own")
    data["qos"]["disk"] = qos.get("shared", {})
    return InstanceSpec.model_validate(data)


def test_at_the_start_live_and_by_the_next_daemon(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        disks = [
            {"name": "a", "size": "1MiB", "qos": {"read_bytes": "1MiB/s"}},
            {"name": "b", "size": "1MiB"},
        ]
        async with world.daemon():
            view = await world.create(spec={"disks": disks})
            machine = world.machine()
            assert machine.throttled == {"a": Throttle("disk-a", {"read_bytes": MiB}), "b": None}
            assert view.status.disk_limits == {"a": LimitsInForce(read_bytes=MiB), "b": None}
            status = await apply(world, limited(view.record.spec, shared={"total_ops": 500}))
            shared = Throttle(SHARED_GROUP, {"total_ops": 500})
            assert machine.throttled == {"a": shared, "b": shared}
            assert status.disk_limits["a"] == LimitsInForce(total_ops=500, shared=True)
            # It does not answer: the wish is kept, what is in force is told, and asking again does it.
            world.engine.fail["throttle"] = EngineError("QEMU did not answer")
            wanted = limited(view.record.spec, own={"write_ops": 5})
            with pytest.raises(EngineError):
                await apply(world, wanted)
            assert (await world.repo.view("web")).status.disk_limits["a"] == LimitsInForce(
                total_ops=500, shared=True
            )
            del world.engine.fail["throttle"]
            assert (await apply(world, wanted)).disk_limits == {"a": LimitsInForce(write_ops=5), "b": None}
            calls = world.engine.calls.count("throttle web")
            await apply(world, wanted)
            assert world.engine.calls.count("throttle web") == calls, "nothing was left to do"
        # Whatever became of it while no daemon ran.
        machine.throttled = {"a": None, "b": shared}
        async with world.daemon():
            assert machine.throttled == {"a": Throttle("disk-a", {"write_ops": 5}), "b": None}
            await world.want(power=Power.OFF, stop=StopMode.KILL)
            assert (await world.repo.view("web")).status.disk_limits == {}

    run(scenario())


def test_it_does_not_start_without_its_limits(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        world.engine.fail["throttle"] = EngineError("QEMU did not answer")
        async with world.daemon():
            disks = [{"name": "a", "size": "1MiB", "qos": {"total_ops": 5}}]
            with pytest.raises(EngineError, match="did not answer"):
                await world.create(spec={"disks": disks})
            assert not world.engine.machines

    run(scenario())


# -- what holds it back --------------------------------------------------------------------------------


def look(reads: int, size: int = 0, in_flight: int | None = 1) -> Look:
    return Look({"rd_operations": reads, "rd_bytes": size}, in_flight)


@pytest.mark.parametrize(
    ("limits", "done", "in_flight", "expected"),
    [
        ({"total_ops": 100}, 100, [1, 1, 1], ["total_ops"]),
        ({"total_ops": 100}, 100, [0, 0, 1], []),
        ({"total_ops": 100}, 100, [None, None, None], ["total_ops"]),
        ({"total_ops": 100}, 60, [1, 1, 1], []),
        ({"total_ops": 100, "total_ops_burst": 300}, 299, [1, 1, 1], ["total_ops"]),
        ({"total_ops": 100, "total_ops_burst": 300}, 200, [1, 1, 1], []),
        ({"read_ops": 100, "write_ops": 5}, 100, [1, 1, 1], ["read_ops"]),
        ({"write_bytes": 100}, 100, [1, 1, 1], []),
        ({"read_bytes": 409_600, "read_ops": 1000}, 100, [1, 1, 1], ["read_bytes"]),
        ({"total_ops": 200, "op_size": 2048}, 100, [1, 1, 1], ["total_ops"]),
        ({"total_ops": 1}, 0, [1, 1, 1], ["total_ops"]),
    ],
)  # fmt: skip
def test_held_back_by(
    limits: dict[str, int], done: int, in_flight: list[int | None], expected: list[str]
) -> None:
    parts = zip((0, done // 2, done), in_flight, strict=True)
    looks = [look(count, count * 4096, waiting) for count, waiting in parts]
    found = held_back_by(Throttle("g", limits), looks, [(looks[0], looks[-1])], 1.0)
    assert found == expected


def test_what_others_of_the_group_do_counts() -> None:
    mine, other = [look(0), look(20)], (look(0), look(80))
    throttle = Throttle("g", {"total_ops": 100})
    assert held_back_by(throttle, mine, [(mine[0], mine[1]), other], 1.0) == ["total_ops"]
    assert held_back_by(throttle, mine, [(mine[0], mine[1])], 1.0) == []


# -- the command line ----------------------------------------------------------------------------------


def test_options_of_a_disk() -> None:
    assert specargs.disk("10GiB,iops=500,read_bytes=50MiB/s", "d") == {
        "name": "d",
        "size": "10GiB",
        "qos": {"total_ops": "500", "read_bytes": "50MiB/s"},
    }
    assert specargs.disk("10GiB,bps=1MiB/s,bus=sata,total_bytes_burst_length=9s", "d")["qos"] == {
        "total_bytes": "1MiB/s",
        "total_bytes_burst_length": "9s",
    }
    with pytest.raises(BadRequest, match="Unknown disk option 'iopps'"):
        specargs.disk("10GiB,iopps=500", "d")
    assert set(specargs._DISK_LIMITS.values()) == set(LIMIT_FIELDS)


def test_set_reaches_what_is_not_there_yet() -> None:
    data = spec().model_dump(mode="json")
    found = changed_spec(data, {"disks.1.qos.read_bytes": "1MiB/s", "qos.disk.total_ops": "5"})
    wanted = InstanceSpec.model_validate(found)
    assert wanted.disks[1].qos == DiskLimits(read_bytes=MiB) and wanted.qos.disk.total_ops == 5
    found = changed_spec(wanted.model_dump(mode="json"), {"disks.1.qos.read_bytes": "", "qos.disk": ""})
    assert InstanceSpec.model_validate(found) == spec()
    with pytest.raises(SpecError, match=r"No such disk: disks.3.qos.read_bytes; it has disks.0 \(a\)"):
        changed_spec(data, {"disks.3.qos.read_bytes": "1MiB/s"})
    with pytest.raises(SpecError, match="its spec lists none"):
        changed_spec(spec(disks=[]).model_dump(mode="json"), {"disks.0.qos.read_bytes": "1MiB/s"})
    for field in ("disks.x.qos.read_bytes", "disks.0.qqos.read_bytes"):
        with pytest.raises(SpecError, match="No such field"):
            changed_spec(data, {field: "1MiB/s"})
    with pytest.raises(SpecError, match="a group of fields"):
        changed_spec(data, {"disks.0.qos": "1MiB/s"})
    with pytest.raises(
        SpecError, match=r"qos.cpu is a group of fields; name one, such as qos.cpu.shares=VALUE"
    ):
        changed_spec(data, {"qos.cpu": "5"})
    with pytest.raises(SpecError, match=r"such as labels.NAME=VALUE"):
        changed_spec(data, {"labels": "5"})


def test_limits_in_words() -> None:
    limits = {"read_bytes": 50 * MiB, "read_bytes_burst": GiB, "read_bytes_burst_length": 10, "total_ops": 5}
    assert limits_shown(limits) == "50MiB/s read (1GiB/s for 10 s), 5/s total"
    dumped = DiskLimits.model_validate(limits | {"op_size": 4096}).model_dump(mode="json")
    assert limits_shown(dumped, shared=True) == (
        "50MiB/s read (1GiB/s for 10 s), 5/s total, counted by 4KiB, shared"
    )
    assert limits_shown({}, shared=True) == ""
