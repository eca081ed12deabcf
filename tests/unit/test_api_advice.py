"""Advice over HTTP, and as `inn advise` prints it."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from api_harness import UID, serve
from cli_harness import Inn, inn, server

from fakes.api_server import ApiServer, Request
from helpers import run
from innkeeper.api.verbs.advise import refuse_not_running
from innkeeper.control.advice.evidence import AVERAGES, PEAKS
from innkeeper.errors import Conflict, NotFound, WrongState
from innkeeper.spec.instance import InstanceStatus, State, Template, Wanted

__all__ = ["inn", "server"]  # fixtures


def test_what_runs_is_asked_about(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            told = await api.call("GET", "/advice")
            assert told["host"] == {"name": "h1", "cpus": 2, "vcpus": 0, "used": 0.5}
            assert told["instances"] == []
            running = InstanceStatus(state=State.RUNNING, generation=1, created=True, cpus=2, epoch=1)
            await api.repo.put_status("off", UID, running)
            told = await api.call("GET", "/instances/off/advice", window_s=60, min_data_s=10)
            assert told["window_s"] == 60 and told["data_s"] == 0 and told["advice"] == []
            assert [one["reason"] for one in told["withheld"]] == ["data", "data"]
            asked = [one for one in api.metering.asked if one[0] == "history"]
            assert asked[0][1] == "off" and asked[0][3] == 5  # closely, of a short window
            assert asked[0][4:] == (AVERAGES, PEAKS)  # and nothing that no rule reads: a day of all is dear
            told = await api.call("POST", "/instances/off/advice", {"watch_s": 10})
            assert told["trials"] == [] and told["window_s"] == 86400

    run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "query", "body", "said"),
    [
        ("GET", "/advice", {"window_s": 9}, None, "window_s"),
        ("GET", "/advice", {"window_s": 90001}, None, "window_s"),
        ("GET", "/advice", {"window_s": "nan"}, None, "window_s"),
        ("GET", "/advice", {"window_s": "-1"}, None, "window_s"),
        ("GET", "/instances/off/advice", {"window_s": "1d"}, None, "window_s"),
        ("GET", "/instances/off/advice", {"min_data_s": 4}, None, "min_data_s"),
        ("GET", "/instances/off/advice", {"window_s": 60, "min_data_s": 61}, None, "cannot lie in a window"),
        ("POST", "/instances/off/advice", {}, {"watch_s": 0}, "watch_s"),
        ("POST", "/instances/off/advice", {}, {"watch_s": 1e9}, "watch_s"),
        ("POST", "/instances/off/advice", {}, {"kind": "gpu"}, "kind"),
        ("POST", "/instances/off/advice", {}, {"widnow_s": 60}, "widnow_s"),
        ("POST", "/instances/off/advice", {}, {"window_s": 60, "min_data_s": 600}, "cannot lie in a window"),
    ],
)
def test_bad_questions(
    tmp_path: Path, method: str, path: str, query: dict[str, Any], body: Any, said: str
) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            error = await api.refused(method, path, body, status=400, **query)
            assert said in error["message"] + str(error["details"])

    run(scenario())


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_one_that_is_not_there_or_does_not_run(tmp_path: Path, method: str) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            assert "off" in (await api.refused(method, "/instances/of/advice", status=404))["hint"]
            error = await api.refused(method, "/instances/off/advice", status=409)
            assert error["code"] == "wrong_state" and "inn start off" in error["hint"]
            paused = InstanceStatus(state=State.PAUSED, generation=1, created=True, cpus=2, epoch=1)
            await api.repo.put_status("off", UID, paused)
            error = await api.refused(method, "/instances/off/advice", status=409)
            assert "inn resume off" in error["hint"]

    run(scenario())


# -- the command -------------------------------------------------------------------------------------

FEWER: dict[str, Any] = {
    "kind": "cpu", "reason": "single-threaded", "what": "1 vCPU instead of 2: the load is single-threaded",
    "evidence": "average 50 %", "effect": "the same work", "command": "inn set web cpu.count=1",
    "change": {"cpu.count": 1}, "live": True, "why_not_live": "",
}  # fmt: skip
LATER = {**FEWER, "kind": "pages", "what": "huge\x1b[2J pages", "command": "inn set web memory.thp=always",
         "live": False, "why_not_live": "only at a start"}  # fmt: skip
TRIAL: dict[str, Any] = {
    "id": "0" * 16, "kind": "cpu", "reason": "idle", "what": "1 vCPU instead of 2", "state": "watching",
    "change": {"cpu.count": 1}, "before": {"cpu.count": 2}, "epoch": 1, "started_at": 1.0, "changed_at": 1.0,
    "window_s": 600.0, "ended_at": 0.0, "measured_before": {}, "measured_after": {}, "outcome": "",
}  # fmt: skip


def told(name: str = "web", *advice: Any, trials: Any = ()) -> dict[str, Any]:
    withheld = [{"kind": "memory", "reason": "fits", "what": "256MiB fit"}]
    return {
        "name": name, "state": "running", "window_s": 86400.0, "data_s": 3600.0, "advice": list(advice),
        "withheld": withheld, "trials": list(trials),
    }  # fmt: skip


HOST = {"name": "h1", "cpus": 2, "vcpus": 3, "used": 0.5}


def test_of_all(inn: Inn, server: ApiServer) -> None:
    report = {"host": HOST, "instances": [told("db"), told("web", FEWER, LATER)]}
    server.answer("GET", "/v1/advice", report)
    lines = inn("advise").out.splitlines()
    assert lines[:2] == [
        "h1: 3 vCPUs of running VMs on 2 CPUs",
        "db: nothing to change (memory: 256MiB fit)",
    ]
    assert lines[2] == "web: 1 vCPU instead of 2: the load is single-threaded"
    commands = [line.strip() for line in lines if line.strip().startswith("inn ")]
    assert commands == ["inn set web cpu.count=1", "inn set web memory.thp=always"]
    assert all(shlex.split(command)[0] == "inn" for command in commands)
    assert "\x1b" not in "\n".join(lines) and "  when: at its next start; only at a start" in lines
    assert inn("advise", "--json").json == report
    asked = server.requests[-1]
    assert asked.query == {"window_s": "86400.0"}


def test_of_one_with_its_trials(inn: Inn, server: ApiServer) -> None:
    ended = {**TRIAL, "state": "reverted", "ended_at": 2.0, "outcome": "worse, and put back: waits"}
    server.answer("GET", "/v1/instances/web/advice", told(trials=[ended, TRIAL]))
    out = inn("advise", "web", "--window", "10m", "--min-data", "1m").out
    assert "web: nothing to change\n  memory: 256MiB fit\n" in out
    assert "ago, worse, and put back: waits" in out and "watching" in out and "of 10m 0s" in out
    assert server.requests[-1].query == {"window_s": "600.0", "min_data_s": "60.0"}


def test_applying(inn: Inn, server: ApiServer) -> None:
    server.answer("POST", "/v1/instances/web/advice", told("web", FEWER, trials=[TRIAL]))
    out = inn("advise", "web", "--apply", "--kind", "cpu", "--watch", "20s").out
    assert out.startswith("web: 1 vCPU instead of 2: done\n") and out.endswith("    inn advise web\n")
    assert server.requests[-1].json() == {"window_s": 86400.0, "kind": "cpu", "watch_s": 20.0}
    server.answer("POST", "/v1/instances/web/advice", told("web", LATER))
    done = inn("advise", "web", "--apply")
    assert done.status == 0 and "nothing of that can take effect while it runs" in done.err
    server.answer("POST", "/v1/instances/web/advice", told("web"))
    assert inn("advise", "web", "--apply").out == "web: nothing to change (memory: 256MiB fit)\n"


def test_applying_one_kind_says_nothing_of_the_others(inn: Inn, server: ApiServer) -> None:
    """Other advice may well take effect while it runs: it was not asked for."""
    said = told("web", FEWER)
    said["withheld"] = [{"kind": "disk", "reason": "fits", "what": "no"}, *said["withheld"]]
    server.answer("POST", "/v1/instances/web/advice", said)
    done = inn("advise", "web", "--apply", "--kind", "memory")
    assert (done.out, done.err) == ("web: nothing to change (memory: 256MiB fit)\n", "")
    server.answer("GET", "/v1/advice", {"host": HOST, "instances": [said]})
    done = inn("advise", "--apply", "--kind", "memory")
    assert (done.out, done.err) == ("web: nothing to change (memory: 256MiB fit)\n", "")
    assert server.requests[-1].method == "GET"  # there is nothing to apply


def test_applying_to_all_goes_on_after_a_refusal(inn: Inn, server: ApiServer) -> None:
    names = ("a", "b", "c")
    instances = [told("a", FEWER), told("b", FEWER), told("c", LATER)]
    server.answer("GET", "/v1/advice", {"host": HOST, "instances": instances})
    server.answer("POST", "/v1/instances/a/advice", Conflict("a is being watched", hint="wait"))
    server.answer("POST", "/v1/instances/b/advice", told("b", FEWER, trials=[TRIAL]))
    done = inn("advise", "--apply")
    assert done.status == 4 and "a: a is being watched; wait" in done.err
    assert "b: 1 vCPU instead of 2: done" in done.out
    posted = [one.path for one in server.requests if one.method == "POST"]
    assert posted == [f"/v1/instances/{name}/advice" for name in names[:2]]
    assert [one["name"] for one in inn("advise", "--apply", "--json").json["instances"]] == ["b", "c"]


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (("web", "--kind", "cpu"), 2, "--apply"),
        (("web", "--watch", "5m"), 2, "--apply"),
        (("web", "--apply", "--kind", "gpu"), 2, "gpu"),
        (("web", "--window", "soon"), 2, "Not a duration"),
        (("web", "--window", "-5"), 2, ""),
        (("web", "--window", "9s"), 2, "Not a time for --window: 9s; choose one from 10s to 25h"),
        (("web", "--window", "26h"), 2, "choose one from 10s to 25h"),
        (("web", "--min-data", "1s"), 2, "Not a time for --min-data: 1s; choose one from 5s to 25h"),
        (("web", "--apply", "--watch", "2d"), 2, "Not a time for --watch: 2d; choose one from 5s to 24h"),
        (("wrong/name",), 3, "No instance"),
        (("gone",), 3, "No instance named gone"),
        (("off",), 4, "does not run"),
    ],
)
def test_bad_usage(inn: Inn, server: ApiServer, args: tuple[str, ...], status: int, said: str) -> None:
    server.answer("GET", "/v1/instances/gone/advice", NotFound("No instance named gone"))
    server.answer("GET", "/v1/instances/off/advice", WrongState("off does not run (stopped)"))
    done = inn("advise", *args)
    assert done.status == status and said in done.err and "Traceback" not in done.err


def test_a_template_is_not_told_to_run_on_as_if_somebody_had_paused_it() -> None:
    status, wanted = InstanceStatus(state=State.PAUSED), Wanted(template=Template())
    of: Any = SimpleNamespace(name="web", status=status, record=SimpleNamespace(wanted=wanted))
    with pytest.raises(WrongState, match="web is a template, which stands still"):
        refuse_not_running(of)


def test_nothing_runs(inn: Inn, server: ApiServer) -> None:
    def empty(request: Request) -> Any:
        return {"host": {**HOST, "vcpus": 0}, "instances": []}

    server.answer("GET", "/v1/advice", empty)
    assert "no VM runs" in inn("advise").err
    assert "no VM runs" in inn("advise", "--apply").err
