"""The inspector's routes, its SDK and its command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from api_harness import serve
from cli_harness import Inn, inn, server

from fakes import inspections
from fakes.api_server import ApiServer, instance
from helpers import run
from innkeeper.client.client import connect
from innkeeper.errors import EngineError

__all__ = ["inn", "server"]  # fixtures

INSPECT = "/v1/instances/web/inspect"


def data(found: Any) -> Any:
    return json.loads(found.model_dump_json())


# -- routes ----------------------------------------------------------------------------------------


def test_routes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            await api.call("POST", "/instances", {"name": "web", "spec": {"image": "tiny"}})
            base = "/instances/web/inspect"
            assert await api.call("GET", f"{base}/memory") == data(inspections.MEMORY)
            assert await api.call("GET", f"{base}/memory", numa="true") == data(inspections.MEMORY)
            found = await api.call("GET", f"{base}/memory/rsp%2B0x10", physical="true", cpu=1)
            assert found == data(inspections.ADDRESS)
            assert api.live.inspected == [("memory", False), ("memory", True), ("rsp+0x10", True, 1)]
            for what, expected in (
                ("cpu", inspections.CPU),
                ("disk", inspections.DISK),
                ("net", inspections.NET),
            ):
                assert await api.call("GET", f"{base}/{what}") == data(expected)

    run(scenario())


def test_refusals(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            for what in ("memory", "memory/rip", "cpu", "disk", "net"):
                assert (await api.refused("GET", f"/instances/nobody/inspect/{what}", status=404))["code"]
                error = await api.refused("GET", f"/instances/off/inspect/{what}", status=409)
                assert error["code"] == "wrong_state"
            await api.refused("GET", "/instances/off/inspect/memory/rip", status=400, cpu=-1)
            await api.refused("GET", "/instances/off/inspect/memory/rip", status=400, cpu="x")
            await api.refused("GET", "/instances/off/inspect/soul", status=404)

    run(scenario())


# -- SDK -------------------------------------------------------------------------------------------


def test_the_sdk(server: ApiServer) -> None:
    server.answer("GET", "/v1/instances/web", instance("web"))
    for what in ("memory", "cpu", "disk", "net"):
        server.answer("GET", f"{INSPECT}/{what}", {"what": what})
    server.answer("GET", f"{INSPECT}/memory/.*", {"what": "address"})
    web = connect(str(server.paths.state), autostart=False).instances.get("web")
    assert web.inspect_memory()["what"] == "memory"
    assert web.inspect_memory(0xFFFF800000001000)["what"] == "address"
    assert server.requests[-1].path.endswith("/memory/0xffff800000001000")
    web.inspect_memory("rsp+0x10", physical=True, cpu=3)
    assert server.requests[-1].path.endswith("/memory/rsp+0x10")
    assert server.requests[-1].query == {"physical": "true", "cpu": "3"}
    assert [web.inspect_cpu(), web.inspect_disk(), web.inspect_net()] == [
        {"what": what} for what in ("cpu", "disk", "net")
    ]


# -- command line ----------------------------------------------------------------------------------


@pytest.fixture
def told(server: ApiServer) -> ApiServer:
    server.answer("GET", "/v1/instances/web", instance("web"))
    for what, found in (
        ("memory", inspections.MEMORY),
        ("cpu", inspections.CPU),
        ("disk", inspections.DISK),
        ("net", inspections.NET),
        ("memory/rip", inspections.ADDRESS),
        ("memory/0x10", inspections.UNMAPPED),
    ):
        server.answer("GET", f"{INSPECT}/{what}", data(found))
    return server


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["memory", "web"], inspections.MEMORY),
        (["memory", "web", "rip"], inspections.ADDRESS),
        (["cpu", "web"], inspections.CPU),
        (["disk", "web"], inspections.DISK),
        (["net", "web"], inspections.NET),
    ],
)
def test_json_is_what_the_api_says(told: ApiServer, inn: Inn, words: list[str], found: Any) -> None:
    done = inn("inspect", *words, "--json")
    assert (done.status, done.json) == (0, data(found))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["memory", "web"],
            [
                "shared with:     web-1",
                "ram, device",
                "S" * 64,
                "90.0 MiB  common with forks",
                "never touched",
            ],
        ),
        (
            ["memory", "web", "rip"],
            [
                "PDPT   510    0x2a15ff0  0x2a16063  P RW A",
                "0x1a00000 (2MiB page)",
                "page of 2MiB at 0x1a00000, r--x",
                "host-physical:   0x1519efa0b",
                "private: in QEMU's page tables, exclusive, soft-dirty",
                "shadow page table  0xffffffff81a17000  0x1519ef000         4KiB  r-ux    4",
                "EPT or NPT         0x1a17000           0x1519ef000         4KiB  r-x     19",
                "a write copies it first",
                "used here: softmmu",
            ],
        ),
        (
            ["memory", "web", "0x10"],
            ["the walk ended at PDPT: not present: the entry at 0x2a15ff0", "guest-physical:  not mapped"],
        ),
        (
            ["cpu", "web"],
            [
                "web: kvm, paused",
                "long, ring 0, halted",
                "4711 (CPU 0/KVM)",
                "LME LMA",
                "exits 1000, halt_exits 12",
            ],
        ),
        (
            ["disk", "web"],
            [
                "root: 1GiB on virtio",
                "in flight:  2",
                "limits:     100/s total (200/s for 10 s), shared",
                "held back:  by total_ops",
                "written    qcow2   1.0 MiB  -              backup   /srv/top.qcow2",
                "read only  qcow2   2.0 MiB  web-1, web/s1  -        /srv/base.qcow2",
                "reads     10        40.0 KiB  1       0       55.5 us",
            ],
        ),
        (
            ["net", "web"],
            [
                "net0: virtio, 52:54:00:00:00:01",
                "passt (pid 4712), which has ended",
                "tcp 127.0.0.1:8080 to 80",
                "2.0 KiB not taken yet",
                "eth0 up",
                "received  684 B  2",
            ],
        ),
    ],
)
def test_what_people_see(told: ApiServer, inn: Inn, words: list[str], parts: list[str]) -> None:
    done = inn("inspect", *words)
    assert done.status == 0 and done.err == ""
    for part in parts:
        assert part in done.out, f"{part!r} is not in:\n{done.out}"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["memory"], 2),
        (["memory", "web", "rip", "extra"], 2),
        (["memory", "web", "--physical"], 2),
        (["memory", "web", "--cpu", "1"], 2),
        (["memory", "web", "rip", "--numa"], 2),
        (["memory", "web", "rip", "--cpu", "-1"], 2),
        (["memory", "web", "rip", "--cpu", "x"], 2),
        (["soul", "web"], 2),
        (["cpu", "Not/a/name"], 3),
    ],
)
def test_bad_usage(told: ApiServer, inn: Inn, words: list[str], status: int) -> None:
    done = inn("inspect", *words)
    assert done.status == status and done.err.startswith("inn: ") and "Traceback" not in done.err


def test_a_hung_vm_is_a_failure(server: ApiServer, inn: Inn) -> None:
    server.answer("GET", "/v1/instances/web", instance("web"))
    server.answer("GET", f"{INSPECT}/cpu", EngineError("web cannot be looked into", hint="inn kill web"))
    done = inn("inspect", "cpu", "web")
    assert done.status == 1 and "inn kill web" in done.err
