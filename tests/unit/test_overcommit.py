"""What a host may give out: reservations, the ratio, the honest worst case, and the refusals' numbers."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
from api_harness import FACTS, HOST, serve
from cli_harness import Inn, inn, server
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.api_server import ApiServer
from fakes.world import World
from innkeeper.api.prometheus import exposition
from innkeeper.api.verbs.fork import ForkOptions, fork
from innkeeper.clock import SystemClock
from innkeeper.control import overcommit
from innkeeper.control.forking import COPY_OVERHEAD_BYTES
from innkeeper.control.overcommit import account, against, of_fork, of_spec, owed_by
from innkeeper.control.placement import memory_needed, place
from innkeeper.errors import InnkeeperError, NoCapacity, SpecError
from innkeeper.spec.host import HostRecord
from innkeeper.spec.instance import (
    ForkOrigin,
    InstanceRecord,
    InstanceSpec,
    InstanceStatus,
    Power,
    State,
    Wanted,
)
from innkeeper.spec.memory import MemoryNow
from innkeeper.spec.metrics import HostMetrics, MemoryMetrics, Metrics
from innkeeper.spec.overcommit import (
    HostSettings,
    KsmReport,
    beside_ram_bytes,
    kept_bytes,
    needed_now,
    translated_bytes,
)
from innkeeper.store.view import InstanceView
from innkeeper.units import GiB, MiB

__all__ = ["inn", "server"]  # fixtures


def spec(**fields: Any) -> InstanceSpec:
    return InstanceSpec.model_validate({"image": "tiny", **fields})


def host(memory: float = 1.0, cpu: float | None = None, **facts: Any) -> HostRecord:
    settings = HostSettings.model_validate({"overcommit": {"memory": memory, "cpu": cpu}})
    return HOST.model_copy(update={"settings": settings, "facts": FACTS.model_copy(update=facts)})


def view(
    name: str, asked: InstanceSpec, *, fork: str = "", template: bool = False, on: bool = True, epoch: int = 1
) -> InstanceView:
    record = InstanceRecord(
        name=name,
        uid=name,
        created_at=0.0,
        host="h1",
        spec=asked,
        wanted=Wanted(power=Power.ON if on else Power.OFF, epoch=epoch),
        fork=ForkOrigin(parent="p", parent_uid="p", moment=fork, template=template) if fork else None,
    )
    state = State.RUNNING if on else State.STOPPED
    return InstanceView(record, InstanceStatus(state=state, started_at=1.0), 1)


def test_what_is_kept_for_the_host() -> None:
    assert [kept_bytes(size) // MiB for size in (GiB, 4 * GiB, 8 * GiB, 64 * GiB)] == [128, 256, 512, 1024]


def test_a_vm_that_has_its_ram_for_itself() -> None:
    plain = spec(memory={"size": "1GiB"})
    need = memory_needed(plain)
    assert of_spec(plain) == overcommit.Owed(0, need, need, 1)
    reserved = spec(memory={"size": "1GiB"}, qos={"memory": {"reservation": "512MiB", "limit": "768MiB"}})
    assert of_spec(reserved) == overcommit.Owed(512 * MiB, 768 * MiB, 768 * MiB, 1)
    for whole in ({"locked": True}, {"prealloc": True}):
        assert of_spec(spec(memory={"size": "1GiB", **whole})).promised == need
    huge = spec(memory={"size": "1GiB", "hugepages": "2MiB"})
    assert of_spec(huge) == overcommit.Owed(0, need - GiB, need - GiB, 1)  # its RAM is not ordinary memory


def test_a_fork_may_take_little_and_could_take_all() -> None:
    parent = spec(memory={"size": "1GiB"})
    owed = of_fork(parent)
    assert (owed.promised, owed.given, owed.most) == (
        0,
        256 * MiB + COPY_OVERHEAD_BYTES,
        GiB + COPY_OVERHEAD_BYTES,
    )
    reserved = of_fork(spec(memory={"size": "1GiB"}, qos={"memory": {"reservation": "512MiB"}}))
    assert (reserved.promised, reserved.given) == (512 * MiB, 512 * MiB)


def test_forks_of_one_moment_share_its_frozen_ram_once() -> None:
    asked = spec(memory={"size": "1GiB"})
    one = view("p", asked)
    forks = [view(f"f{n}", asked, fork="a" * 16) for n in range(3)]
    total = owed_by("h1", [one, *forks])
    assert total.most == of_spec(asked).most + 3 * of_fork(asked).most + GiB
    # That of a template is the template's own; that of a restarted fork is not shared at all.
    of_template = [view(f"t{n}", asked, fork="b" * 16, template=True) for n in range(2)]
    assert owed_by("h1", [one, *of_template]).most == of_spec(asked).most + 2 * of_fork(asked).most
    assert owed_by("h1", [view("f", asked, fork="a" * 16, epoch=2)]) == of_spec(asked)
    assert owed_by("h1", [view("off", asked, on=False)]) == overcommit.Owed()
    assert owed_by("other", [one]) == overcommit.Owed()


def test_memory_that_was_not_touched_yet_is_not_given_out_twice() -> None:
    """What the rule of available memory alone would do: a guest of 5 GiB that has just booted has touched
    little, so that 6 GiB are available still."""
    others = [view("first", spec(memory={"size": "5GiB"}))]
    wanted = spec(memory={"size": "4GiB"})
    assert place(wanted, [host()], []).host == "h1"
    with pytest.raises(NoCapacity) as caught:
        place(wanted, [host()], [], rules=[overcommit.rule(wanted, others)])
    assert (
        "it may take 4.1 GiB of memory; others may take 5.1 GiB of the 7.5 GiB there is for VMs, and "
        "overcommit.memory is 1" in caught.value.message
    )
    assert caught.value.hint is not None and "inn host set overcommit.memory=1.3" in caught.value.hint
    assert place(wanted, [host(1.3)], [], rules=[overcommit.rule(wanted, others)]).host == "h1"


@pytest.mark.parametrize(
    ("qos", "others", "told"),
    [
        ("7GiB", [], ""),
        (
            "7GiB",
            ["1GiB"],
            "it reserves 7.0 GiB of memory; 1.0 GiB of the 7.5 GiB there is for VMs is",
        ),
        ("4GiB", ["4GiB"], "(512 MiB is kept for the host)"),
    ],
)
def test_reservations_are_never_overcommitted(qos: str, others: list[str], told: str) -> None:
    def reserving(size: str) -> InstanceSpec:
        return spec(memory={"size": size}, qos={"memory": {"reservation": size}})

    views = [view(f"v{n}", reserving(size)) for n, size in enumerate(others)]
    found = list(against(reserving(qos), of_spec(reserving(qos)), host(10), owed_by("h1", views)))
    assert [told in one.reason for one in found] == ([True] if told else [])
    assert all(one.capacity for one in found)


def test_vcpus() -> None:
    four = spec(cpu={"count": 4})
    others = owed_by("h1", [view("a", four)])
    assert list(against(four, of_spec(four), host(), others)) == []
    assert list(against(four, of_spec(four), host(cpu=4), others)) == []
    (one,) = against(four, of_spec(four), host(cpu=3.5), others)
    assert "it has 4 vCPUs; with the 4 of others these are 4.0 for each of the 2 CPUs" in one.reason


def test_only_what_becomes_more_is_held_against_a_vm_that_runs() -> None:
    """A ratio that was lowered under it refuses more of that, and nothing else."""
    one = view("a", spec(memory={"size": "4GiB"}, cpu={"count": 2}))
    other = view("b", spec(memory={"size": "6GiB"}, qos={"memory": {"reservation": "6GiB"}}))
    tight = host(0.1, cpu=0.5)

    def change(**fields: Any) -> None:
        overcommit.refuse_change(one.record, spec(**fields), [tight], [one, other])

    change(memory={"size": "4GiB"}, cpu={"count": 2}, qos={"memory": {"reservation": "1GiB"}})
    change(memory={"size": "3GiB"}, cpu={"count": 1})
    with pytest.raises(NoCapacity, match="it has 3 vCPUs; with the 1 of others"):
        change(memory={"size": "4GiB"}, cpu={"count": 3})
    with pytest.raises(NoCapacity, match=r"overcommit\.memory is 0\.1"):
        change(memory={"size": "5GiB"}, cpu={"count": 2})
    with pytest.raises(NoCapacity, match="it reserves"):
        change(memory={"size": "4GiB"}, cpu={"count": 2}, qos={"memory": {"reservation": "2GiB"}})


def test_what_waits_for_the_next_start_is_owed_until_then() -> None:
    """Its spec says less than the process has."""
    less = view("a", spec(memory={"size": "256MiB"}, cpu={"count": 1}))
    has = MemoryNow(size=4 * GiB, start=4 * GiB, most=4 * GiB)
    runs = dataclasses.replace(less, status=less.status.model_copy(update={"memory": has, "cpus": 4}))
    assert owed_by("h1", [runs]) == of_spec(spec(memory={"size": "4GiB"}, cpu={"count": 4}))
    assert owed_by("h1", [less]) == of_spec(less.record.spec)


def test_what_must_be_there_at_a_start() -> None:
    assert [needed_now(100, ratio) for ratio in (0.5, 1.0, 2.0)] == [100, 100, 50]
    wanted = spec(memory={"size": "6GiB"})
    with pytest.raises(NoCapacity, match="is available"):
        place(wanted, [host(1.0)], [])
    assert place(wanted, [host(1.5)], []).host == "h1"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"memory": {"size": "256MiB"}, "qos": {"memory": {"reservation": "1GiB"}}},
            "more than it can ever take",
        ),
        ({"memory": {"size": "256MiB"}, "qos": {"memory": {"reservation": "300MiB"}}}, ""),
        (
            {"memory": {"size": "256MiB", "max": "1GiB"}, "qos": {"memory": {"reservation": "1GiB"}}},
            "",
        ),
    ],
)
def test_promises_nobody_can_use(fields: Any, told: str) -> None:
    if told:
        with pytest.raises(SpecError, match=told):
            overcommit.check_reservation(spec(**fields))
    else:
        overcommit.check_reservation(spec(**fields))


sizes = st.integers(1, 4096).map(lambda mib: mib * MiB)
vms = st.fixed_dictionaries(
    {"size": st.integers(16, 4096), "reserve": st.floats(0, 1), "fork": st.booleans()}
)


@settings(deadline=None)
@given(st.lists(vms, max_size=30), st.floats(0.1, 4.0))
def test_whatever_is_admitted_stays_within_what_there_is(asked: list[dict[str, Any]], ratio: float) -> None:
    here, admitted = host(ratio), list[InstanceView]()
    capacity = overcommit.capacity_bytes(here)
    for number, one in enumerate(asked):
        size = one["size"] * MiB
        wanted = spec(
            memory={"size": size}, qos={"memory": {"reservation": int(size * one["reserve"]) // MiB * MiB}}
        )
        new = view(f"v{number}", wanted, fork="a" * 16 if one["fork"] else "")
        owed = overcommit.of_record(new.record)
        if not list(against(wanted, owed, here, owed_by("h1", admitted))):
            admitted.append(new)
    total = account(here, admitted)
    assert total.memory.promised <= capacity
    assert total.memory.given <= ratio * capacity
    assert total.memory.promised <= total.memory.worst and total.memory.given <= total.memory.worst


def test_a_host_with_1000_vms() -> None:
    asked = spec(memory={"size": "256MiB"})
    views = [view(f"v{n}", asked, fork=f"{n % 10:016}" if n % 2 else "") for n in range(1000)]
    large = host(memory_bytes=512 * GiB)
    begun = time.process_time()
    for _ in range(10):
        found = account(large, views)
    assert time.process_time() - begun < 2.0  # some 5 ms each: this is asked under the admission lock
    assert found.cpu.vcpus == 1000
    assert found.memory.worst == 500 * (of_spec(asked).most + of_fork(asked).most) + 5 * 256 * MiB


# -- the verbs ---------------------------------------------------------------------------------------


def test_forks_that_reserve_are_refused_with_the_numbers(tmp_path: Path) -> None:
    from innkeeper.api.verbs.fork import ForkOptions, fork
    from innkeeper.clock import SystemClock

    async def scenario() -> None:
        world = World(tmp_path)
        await world.repo.put_host(HOST.model_copy(update={"name": "host"}))
        async with world.daemon():
            await world.create(spec={"memory": {"size": "1GiB"}, "qos": {"memory": {"reservation": "1GiB"}}})
            with pytest.raises(NoCapacity, match=r"cannot take 7 copies of web: it reserves 7 x 1\.0 GiB"):
                await fork(world.repo, SystemClock(), "web", ForkOptions(count=7, until="running"))
            assert [one.name for one in await world.repo.instances()] == ["web"]
            made = await fork(world.repo, SystemClock(), "web", ForkOptions(count=3, until="running"))
            assert len(made) == 3

    asyncio.run(scenario())


def test_more_for_a_running_vm_is_admitted_less_always(tmp_path: Path) -> None:
    first = {"memory": {"size": "5GiB"}, "qos": {"memory": {"reservation": "5GiB"}}}
    second = {"memory": {"size": "2GiB"}}

    async def scenario() -> None:
        async with serve(tmp_path) as api:
            for name, asked in (("first", first), ("second", second)):
                await api.call(
                    "POST",
                    "/instances",
                    {"name": name, "spec": {"image": "tiny", **asked}, "start": True},
                    expect=200,
                )
            body = {"spec": {"image": "tiny", **second, "qos": {"memory": {"reservation": "2GiB"}}}}
            await api.call("PUT", "/instances/second", body)
            body = {"spec": {"image": "tiny", "memory": {"size": "3GiB"}}}
            error = await api.refused("PUT", "/instances/second", body, status=409)
            assert "overcommit.memory is 1" in error["message"]
            body = {"spec": {"image": "tiny", "memory": {"size": "1GiB"}}}
            await api.call("PUT", "/instances/second", body)
            owed = (await api.call("GET", "/host"))["overcommit"]
            assert owed["memory"]["promised"] == 5 * GiB
            assert owed["memory"]["capacity"] == 8 * GiB - 512 * MiB
            assert owed["cpu"] == {"cpus": 2, "vcpus": 2, "ratio": 1.0, "limit": None}

    asyncio.run(scenario())


def test_settings_over_the_api(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    class Settings:
        async def change(self, changes: dict[str, Any]) -> HostSettings:
            asked.append(changes)
            return HostSettings()

    async def scenario() -> None:
        async with serve(tmp_path) as api:
            await api.refused("PATCH", "/host", {"ksm": "never"}, status=409)
            object.__setattr__(api.deps, "settings", Settings())
            answer = await api.call("PATCH", "/host", {"ksm": "never", "overcommit": {"memory": 1.5}})
            assert answer["name"] == "h1" and answer["overcommit"]["memory"]["limit"] == 1.0
            await api.call("PATCH", "/host", {"overcommit": {"cpu": None}})
            assert asked == [{"ksm": "never", "overcommit": {"memory": 1.5}}, {"overcommit": {"cpu": None}}]
            for body in (
                {},
                {"ksm": "perhaps"},
                {"overcommit": {}},
                {"overcommit": {"memory": 0}},
                {"overcommit": {"memory": -1}},
                {"overcommit": {"memory": None}},
                {"overcommit": {"cpu": 1e9}},
                {"overcommit": {"disk": 2}},
            ):
                await api.refused("PATCH", "/host", body, status=400)

    asyncio.run(scenario())


def test_on_the_command_line(inn: Inn, server: ApiServer) -> None:
    memory = {"capacity": 8 * GiB, "kept": GiB, "promised": 0, "given": 4 * GiB, "worst": 16 * GiB}
    owed = {
        "memory": {**memory, "ratio": 0.5, "worst_ratio": 2.0, "limit": 1.5},
        "cpu": {"cpus": 2, "vcpus": 4, "ratio": 2.0, "limit": None},
    }
    ksm = {"running": True, "by": "innkeeper", "saved_bytes": 3 * MiB, "profit_bytes": 2 * MiB, "cpu": 0.012}
    record = {
        "name": "here",
        "facts": {"cpus": 2, "memory_bytes": 9 * GiB},
        "overcommit": owed,
        "ksm": {**ksm, "why": "1.0 GiB of 9.0 GiB is available"},
        "settings": {"ksm": "auto"},
    }
    server.answer("PATCH", "/v1/host", record)
    server.answer("GET", "/v1/host", record)
    out = inn("host", "set", "overcommit.memory=1.5", "overcommit.cpu=none", "ksm=auto").out
    assert server.requests[-1].json() == {"overcommit": {"memory": 1.5, "cpu": None}, "ksm": "auto"}
    for shown in (out, inn("host", "show").out):
        assert "8.0 GiB (1.0 GiB kept for the host)" in shown
        assert "16.0 GiB, 2.00 of it" in shown and "(overcommit.memory: 1.5)" in shown
        assert "4, 2.00 for each CPU (overcommit.cpu: none)" in shown
        assert "on, by innkeeper (auto); 3.0 MiB saved (2.0 MiB net), ksmd takes 1.2 % of a CPU" in shown
    for wrong in (
        "ksm=perhaps", "overcommit.memory=none", "overcommit.memory=-1", "overcommit.memory=nan",
        "overcommit.memory=lots", "overcommit.disk=2", "overcommit=2", "overcommit.cpu=0",
    ):  # fmt: skip
        assert inn("host", "set", wrong).status == 2, wrong
    assert inn("host", "set", "ksm=auto", "--node", "0").status == 2


def test_the_agent_looks_once_more(tmp_path: Path) -> None:
    """With a ratio above one a start needs so much less to be there."""

    async def scenario() -> None:
        world = World(tmp_path)
        world.host.available = 1 * GiB
        async with world.daemon():
            for name, ratio, fine in (("a", 1.0, False), ("b", 2.0, True)):
                world.host.settings = HostSettings.model_validate({"overcommit": {"memory": ratio}})
                try:
                    await world.create(name, spec={"memory": {"size": "1GiB"}})
                    failed = (await world.repo.view(name)).status.failure is not None
                except InnkeeperError:
                    failed = True
                assert failed is not fine

    asyncio.run(scenario())


def test_what_a_vm_could_still_grow_by(tmp_path: Path) -> None:
    booted, forked = view("a", spec(memory={"size": "256MiB"})), view("f", spec(), fork="a" * 16)
    most = of_spec(booted.record.spec).most
    told = MemoryMetrics(given=256 * MiB, resident=100 * MiB)
    assert overcommit.growth(booted.record, told) == most - 100 * MiB
    walked = told.model_copy(update={"private": 20 * MiB, "shared": 80 * MiB, "swapped": 5 * MiB})
    assert overcommit.growth(forked.record, walked) == of_fork(forked.record.spec).most - 25 * MiB
    assert overcommit.growth(booted.record, MemoryMetrics(given=256 * MiB)) is None
    assert overcommit.growth(booted.record, told.model_copy(update={"resident": GiB})) == 0

    async def scenario() -> None:
        async with serve(tmp_path) as api:
            metrics = await api.call("GET", "/metrics")
            assert metrics["instances"][0]["memory"]["growth"] is None
            text = (await api.http.get("/metrics")).text
            assert f'innkeeper_host_memory_capacity_bytes{{host="h1"}} {8 * GiB - 512 * MiB}' in text
            assert 'innkeeper_host_overcommit_ratio{host="h1",resource="memory_worst"} 0.0' in text

    asyncio.run(scenario())
    report = KsmReport(running=True, saved_bytes=4096, profit_bytes=None, cpu=0.01)
    host_metrics = HostMetrics(
        name="h1", at=1.0, cpus=2, load=(0, 0, 0), memory_bytes=1, memory_available_bytes=1, swap_bytes=0,
        swap_free_bytes=0,
    )  # fmt: skip
    text = exposition(Metrics(host=host_metrics, instances=()), None, report)
    assert 'innkeeper_host_ksm_saved_bytes{host="h1"} 4096' in text and "profit" not in text
    assert 'innkeeper_host_ksm_cpus_used{host="h1"} 0.01' in text


# -- translated code -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "most"),
    [
        (16 * MiB, 64 * MiB),
        (512 * MiB, 64 * MiB),
        (600 * MiB, 75 * MiB),
        (1 * GiB, 128 * MiB),
        (64 * GiB, 128 * MiB),
    ],
)
def test_what_qemu_keeps_of_translated_code_is_bounded(memory: int, most: int) -> None:
    assert translated_bytes("tcg", memory) == most
    assert translated_bytes("kvm", memory) == 0
    assert beside_ram_bytes(most) == 64 * MiB + most and beside_ram_bytes(0) == 64 * MiB


def test_every_start_and_copy_is_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        async with world.daemon() as ctx:
            await world.create(spec={"memory": {"size": "1GiB"}, "machine": {"accelerator": "tcg"}})
            uid = world.machine().plan.uid
            assert world.machine().plan.translated_bytes == 128 * MiB
            # As one that an older daemon started: who goes on for it and its copies are bounded.
            running = ctx.running[uid]
            assert running.plan is not None
            running.plan = dataclasses.replace(running.plan, translated_bytes=0)
            await fork(world.repo, SystemClock(), "web", ForkOptions(until="running", timeout_s=10.0))
            for name in ("web", "web-1"):
                assert world.machine(name).plan.translated_bytes == 128 * MiB

    asyncio.run(scenario())
