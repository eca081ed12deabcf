"""Metrics over HTTP: now, the last day, and in the format of Prometheus."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from api_harness import serve

from helpers import run
from innkeeper.api.prometheus import exposition
from innkeeper.spec.metrics import (
    CpuMetrics,
    HostMetrics,
    InstanceMetrics,
    MemoryMetrics,
    Metrics,
    PressureMetrics,
    ThreadMetrics,
)

# A line of the format: name{label="value",...} number
_LINE = re.compile(r'[a-z_]+\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+\} -?[0-9][0-9.e+-]*')


def test_now(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            told = await api.call("GET", "/metrics")
            assert [one["name"] for one in told["instances"]] == ["off"]
            assert told["host"]["used"] == 0.5 and told["instances"][0]["cpu"]["used"] is None
            await api.call("GET", "/metrics", max_age_s=1.5)
            assert api.metering.asked == [("metrics", None), ("metrics", 1.5)]

    run(scenario())


def test_the_last_day(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            now = api.deps.clock.time()
            told = await api.call("GET", "/instances/off/metrics")
            assert told["average"]["cpu"] == [0.5, None] and told["step_s"] == 60
            await api.call("GET", "/instances/off/metrics", since=0)
            await api.call("GET", "/instances/off/metrics", since=7.5, resolution=3600)
            await api.call("GET", "/metrics/history", since=now - 60)
            asked = api.metering.asked
            assert asked[0][1] == "off" and asked[0][2] == pytest.approx(now - 600, abs=60)
            assert asked[0][3] == 5 and asked[1][2:4] == (0, 60) and asked[2][2:4] == (7.5, 3600)
            assert asked[3][1] == "" and asked[3][3] == 5

    run(scenario())


def test_why_it_is_slow(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            told = await api.call("GET", "/instances/off/why")
            assert told["verdict"] == "waited" and told["causes"][0]["lost"] == 0.5
            await api.call("GET", "/instances/off/why", since="10m")
            await api.call("GET", "/instances/off/why", since="24h")
            assert api.metering.asked == [
                ("why", "off", 60.0),
                ("why", "off", 600.0),
                ("why", "off", 86400.0),
            ]
            error = await api.refused("GET", "/instances/off/why", status=409, since="5s")
            assert error["code"] == "wrong_state"
            error = await api.refused("GET", "/instances/of/why", status=404)
            assert "off" in error["hint"]

    run(scenario())


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/metrics", {"max_age_s": 0}),
        ("/metrics", {"max_age_s": "nan"}),
        ("/metrics", {"max_age_s": "soon"}),
        ("/instances/off/metrics", {"since": -1}),
        ("/instances/off/metrics", {"resolution": 1}),
        ("/instances/off/metrics", {"resolution": "1h"}),
        ("/metrics/history", {"since": "inf", "resolution": 1e9}),
        ("/instances/off/why", {"since": "4s"}),
        ("/instances/off/why", {"since": "25h"}),
        ("/instances/off/why", {"since": "-60s"}),
        ("/instances/off/why", {"since": "soon"}),
        ("/instances/off/why", {"since": "60parsec"}),
        ("/instances/off/why", {"since": ""}),
        ("/instances/off/why", {"since": "9" * 40}),
    ],
)
def test_bad_questions(tmp_path: Path, path: str, query: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            error = await api.refused("GET", path, status=400, **query)
            assert error["code"] == "bad_request"
            assert api.metering.asked == []

    run(scenario())


def test_an_instance_that_is_not_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            error = await api.refused("GET", "/instances/of/metrics", status=404)
            assert "off" in error["hint"]

    run(scenario())


def test_for_prometheus(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            answer = await api.http.get("/metrics")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert 'innkeeper_vm_info{name="off"' in answer.text

    run(scenario())


def test_the_format_of_prometheus() -> None:
    host = HostMetrics(
        name='a"b\\c\n', at=1.0, cpus=2, used=1.25, load=(0, 0, 0), memory_bytes=8, memory_available_bytes=4,
        swap_bytes=0, swap_free_bytes=0, pressure=PressureMetrics(cpu=0.5, memory=0.0, io=1e-9),
    )  # fmt: skip
    thread = ThreadMetrics(name="vcpu0", kind="vcpu", tid=5, used=0.75)
    vm = InstanceMetrics(
        name="web", uid="u", state="running", accelerator="tcg", pid=1, at=1.0,
        cpu=CpuMetrics(given=1, used=0.8, threads=(thread,)), memory=MemoryMetrics(given=100, resident=50),
        totals={"cpu_seconds": 12.5, "disk_read_bytes": 4096.0},
    )  # fmt: skip
    off = vm.model_copy(
        update={"name": "off", "totals": {}, "cpu": CpuMetrics(given=1), "memory": MemoryMetrics(given=7)}
    )
    text = exposition(Metrics(host=host, instances=(vm, off)))
    assert text.endswith("\n")
    lines = text.splitlines()
    for line in lines:
        assert line.startswith(("# HELP ", "# TYPE ")) or _LINE.fullmatch(line), line
    families = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    assert len(families) == len(set(families))
    assert 'innkeeper_vm_cpu_seconds_total{name="web"} 12.5' in lines
    assert 'innkeeper_vm_thread_cpus_used{name="web",thread="vcpu0"} 0.75' in lines
    assert 'innkeeper_vm_memory_given_bytes{name="off"} 7' in lines
    assert not any("innkeeper_vm_cpu_seconds_total" in line and "off" in line for line in lines)
    assert 'innkeeper_host_cpus_used{host="a\\"b\\\\c\\n"} 1.25' in lines
    assert not any("network" in line for line in lines)  # what nobody knows has no family
