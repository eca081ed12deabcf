"""`inn top --why`: what it shows of an answer, in how much room, and what it does not take."""

from __future__ import annotations

from typing import Any

import pytest
from cli_harness import Inn, inn, server
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.api_server import ApiServer, Request
from innkeeper.cli.topwhy import LEAST_WIDTH, lines
from innkeeper.errors import BadRequest, NotFound, WrongState

__all__ = ["inn", "server"]  # fixtures


def user(name: str, used: float, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "instance", "name": name, "used": used, "itself": False, "shares": None, "reservation": None,
        "limit": None, **fields,
    }  # fmt: skip


def cause(resource: str, lost: float | None, **fields: Any) -> dict[str, Any]:
    return {
        "resource": resource, "device": "", "lost": lost, "verdict": "v", "missing": "", "unit": None,
        "capacity": None, "numbers": {}, "users": [], "advice": [], **fields,
    }  # fmt: skip


CPU = cause(
    "cpu", 0.41, unit="cpus", capacity=2.0,
    users=[
        user("batch", 1.4, shares="high", limit=1.5),
        user("web", 0.59, shares="normal", reservation=0.5, itself=True),
    ],
    advice=[
        {"command": "inn set web qos.cpu.reservation=1", "effect": "it has 1 CPU whenever it wants so much"},
        {"command": "", "effect": "see top(1)"},
    ],
)  # fmt: skip
MEMORY = cause("memory", None, missing="nobody counts it")
DISK = cause("disk", 0.2, device="vda", unit="share", capacity=1.0, users=[user("db", 0.5)])
RAM = cause("memory", 0.1, unit="bytes", capacity=float(8 << 30), users=[user("db", 2.0**30, limit=2.0**31)])
LIMIT = cause("cpu-limit", 0.3, unit="cpus", capacity=0.5, users=[user("web", 0.5, itself=True)])
NFS = cause("disk", 0.2, device="nfs4", unit="bytes/s", users=[user("db", 5e6)])


def answer(*causes: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "web", "uid": "u", "state": "running", "accelerator": "tcg", "begin": 0.0, "end": 60.0,
        "known_s": 55.0, "step_s": 5, "verdict": "web waited 41 % of the time for a CPU", "causes": [*causes],
    }  # fmt: skip


def test_what_it_says() -> None:
    assert lines(answer(CPU, cause("stolen", 0.0), MEMORY), 100) == [
        "web waited 41 % of the time for a CPU.",
        "",
        "Of 55 s until now it lost, of the time it wanted to run:",
        "    41.0 %  CPU",
        "     0.0 %  stolen from the host",
        "         -  memory: not known, nobody counts it",
        "",
        "Who used the 2 CPUs meanwhile:",
        "  1.40  batch         shares high, limit 1.5",
        "  0.59  web (itself)  shares normal, reservation 0.5",
        "",
        "What to do about CPU:",
        "  inn set web qos.cpu.reservation=1",
        "      it has 1 CPU whenever it wants so much",
        "  see top(1)",
    ]


def test_other_resources() -> None:
    text = "\n".join(lines(answer(DISK, RAM, LIMIT, NFS), 100))
    assert "Who kept vda busy meanwhile:\n  50.0 %  db" in text
    assert "Who had the 8.0G of memory meanwhile:\n  1.0G  db  limit 2.0G" in text
    assert "What it used of 0.5 CPUs:\n  0.50  web (itself)" in text
    assert "Who used nfs4 meanwhile:\n  4.8M/s  db" in text


def test_what_costs_little_has_no_table() -> None:
    text = "\n".join(lines(answer({**CPU, "lost": 0.04}), 100))
    assert "4.0 %  CPU" in text and "batch" not in text and "What to do" not in text


@settings(max_examples=60)
@given(st.integers(1, 200), st.text(min_size=1, max_size=70))
def test_every_screen_has_room(width: int, name: str) -> None:
    told = answer(CPU | {"users": [user(name, 1.0, shares="high")]}, MEMORY, DISK, RAM, LIMIT, NFS)
    for line in lines(told, width):
        assert len(line) <= max(width, LEAST_WIDTH) or line.startswith("  inn set "), line
        assert line.isprintable() or not line


def test_it_asks_for_the_time_it_is_given(inn: Inn, server: ApiServer) -> None:
    asked: list[Any] = []

    def why(request: Request) -> Any:
        asked.append(dict(request.query))
        return answer(CPU)

    server.answer("GET", "/v1/instances/web/why", why)
    ran = inn("top", "--why", "web")
    assert ran.status == 0 and ran.out.startswith("web waited 41 %") and ran.err == ""
    assert inn("top", "web", "--why", "--since", "10m", "--json").json == answer(CPU)
    assert [one["since"] for one in asked] == ["60s", "10m"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound("No instance named web"), 3),
        (WrongState("web did not run in the last 60 s: it is stopped", hint="start it"), 4),
        (BadRequest("Not a time that is known: 3d", hint="choose one from 5s to 24h"), 2),
    ],
)
def test_what_the_daemon_refuses(inn: Inn, server: ApiServer, error: Exception, status: int) -> None:
    def refuse(_: Request) -> Any:
        raise error

    server.answer("GET", "/v1/instances/web/why", refuse)
    ran = inn("top", "--why", "web", "--since", "3d")
    assert ran.status == status and str(error) in ran.err and ran.out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--why",), "inn top --why NAME"),
        (("web", "--since", "10m"), "inn top --why web --since 10m"),
        (("--since", "10m"), "--why is about one VM"),
    ],
)
def test_bad_usage(inn: Inn, server: ApiServer, words: tuple[str, ...], said: str) -> None:
    ran = inn("top", *words)
    assert ran.status == 2 and said in ran.err
