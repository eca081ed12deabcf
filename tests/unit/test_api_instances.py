"""The verbs through HTTP: what they do, what they refuse, what they answer."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from api_harness import HOST, Api, record, serve

from helpers import run
from innkeeper.api import instances, schema
from innkeeper.api.verbs.rm import rm
from innkeeper.errors import Conflict, GuestTimeout, NotFound, StartFailed
from innkeeper.spec.instance import InstanceStatus, State
from innkeeper.units import MiB


def create_body(name: str = "web", *, start: bool = True, **more: Any) -> dict[str, Any]:
    return {"name": name, "spec": {"image": "tiny"}, "start": start, **more}


def test_create_start_and_list(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            made = await api.call("POST", "/instances", create_body())
            assert (made["state"], made["ready"], made["accelerator"]) == ("running", True, "tcg")
            assert made["spec"]["machine"]["type"] == "pc-q35-7.2"
            assert made["image_id"] == "a" * 64
            assert made["paths"]["state"] == str(tmp_path / "state/instances" / made["uid"])
            # read your writes: the very next list and get show it
            listed = (await api.call("GET", "/instances"))["instances"]
            assert [one["name"] for one in listed] == ["off", "web"]
            assert listed[1]["state"] == "running"
            assert "spec" not in listed[1]
            assert await api.call("GET", "/instances/web") == made

    run(scenario())


def test_answers_look_as_documented(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            made = await api.call("POST", "/instances", create_body())
            schema.InstanceFull.model_validate_json(json.dumps(made), extra="forbid")
            listed = await api.call("GET", "/instances")
            schema.InstanceList.model_validate_json(json.dumps(listed), extra="forbid")

    run(scenario())


def test_a_whole_life(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            await api.call("POST", "/instances", create_body(start=False))
            path = "/instances/web"
            states = []
            for verb in ("start", "pause", "pause", "resume", "restart", "stop", "stop", "start", "kill"):
                view = await api.call("POST", f"{path}/{verb}")
                states.append((verb, view["state"], view["wanted"]["epoch"]))
            assert states == [
                ("start", "running", 1),
                ("pause", "paused", 1),
                ("pause", "paused", 1),
                ("resume", "running", 1),
                ("restart", "running", 2),
                ("stop", "stopped", 2),
                ("stop", "stopped", 2),
                ("start", "running", 3),
                ("kill", "stopped", 3),
            ]
            assert await api.call("DELETE", path) == {"removed": "web"}
            assert [one["name"] for one in (await api.call("GET", "/instances"))["instances"]] == ["off"]

    run(scenario())


def test_starting_what_runs_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            first = await api.call("POST", "/instances", create_body())
            again = await api.call("POST", "/instances/web/start", {"wait": "ready"})
            assert again["wanted"] == first["wanted"]
            # but what ended by itself starts anew, though it was never told to be off
            await api.settler.end("web")
            anew = await api.call("POST", "/instances/web/start")
            assert (anew["state"], anew["wanted"]["epoch"]) == ("running", 2)

    run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "told"),
    [
        ("GET", "/instances/offf", 404, "not_found", "did you mean off?"),
        ("GET", "/instances/zzz", 404, "not_found", "inn list"),
        ("POST", "/instances/off/pause", 409, "wrong_state", "inn start off"),
        ("POST", "/instances/off/resume", 409, "wrong_state", "inn start off"),
        ("DELETE", "/instances/zzz", 404, "not_found", "inn list"),
        ("GET", "/instances/off/wait", 409, "wrong_state", "inn start off"),
        ("GET", "/instances/offf/wait", 404, "not_found", "did you mean off?"),
        ("GET", "/instances/zzz/wait?for=stopped", 404, "not_found", "inn list"),
        ("GET", "/instances/off/screenshot", 409, "wrong_state", "inn start off"),
        ("GET", "/instances/zzz/logs", 404, "not_found", "inn list"),
        ("GET", "/instances/zzz/argv", 404, "not_found", "inn list"),
        ("GET", "/images/tony", 404, "not_found", "did you mean tiny?"),
        ("GET", "/nothing", 404, "not_found", "openapi"),
        ("PUT", "/instances", 405, "bad_request", ""),
    ],
)
def test_refusals(tmp_path: Path, method: str, path: str, status: int, code: str, told: str) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            error = await api.refused(method, path, status=status)
            assert error["code"] == code
            assert told in error["hint"]

    run(scenario())


def test_remove_running_needs_force(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            await api.call("POST", "/instances", create_body())
            error = await api.refused("DELETE", "/instances/web", status=409)
            assert error["code"] == "wrong_state"
            assert "inn rm --force web" in error["hint"]
            await api.call("DELETE", "/instances/web", force=True)
            await api.refused("GET", "/instances/web", status=404)

    run(scenario())


@pytest.mark.parametrize(
    ("body", "code", "field", "message"),
    [
        (
            {"spec": {"image": "tiny", "cpu": {"cout": 2}}},
            "bad_spec",
            ["spec", "cpu", "cout"],
            "Unknown field spec.cpu.cout",
        ),
        (
            {"spec": {"image": "tiny", "memory": {"size": "12XB"}}},
            "bad_spec",
            ["spec", "memory", "size"],
            "XB",
        ),
        (
            {"spec": {"image": "tiny", "memory": {"size": "32MiB"}}},
            "bad_spec",
            ["spec", "memory", "size"],
            "too little",
        ),
        ({"spec": {}}, "bad_spec", ["spec"], "nothing to boot from"),
        ({}, "bad_spec", ["spec"], "spec is missing"),
        ({"name": "Web_1", "spec": {"image": "tiny"}}, "bad_spec", ["name"], "Not a valid name"),
        ({"spec": {"image": "tiny", "cpu": {"count": 0}}}, "bad_spec", ["spec", "cpu", "count"], "not '0'"),
        ({"spec": {"image": "tiny"}, "wait": "soon"}, "bad_spec", ["wait"], "not 'soon'"),
        ([], "bad_spec", [], "should be an object"),
    ],
)
def test_bad_specs(tmp_path: Path, body: Any, code: str, field: list[str], message: str) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            error = await api.refused("POST", "/instances", body, status=400)
            assert error["code"] == code
            assert error["details"]["field"] == field
            assert message in error["message"]
            assert len((await api.call("GET", "/instances"))["instances"]) == 1

    run(scenario())


def test_a_misspelt_field_is_guessed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            body = {"spec": {"disks": [{"name": "data", "sice": "1GiB"}]}}
            error = await api.refused("PUT", "/instances/off", body, status=400)
            assert error["hint"] == "did you mean size?"

    run(scenario())


def test_broken_bodies(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            for body in (b"{", b"\xff\xfe", b"[" * 100_000):
                answer = await api.http.post("/v1/instances", content=body)
                assert answer.status_code == 400, answer.text
            answer = await api.http.post("/v1/instances", content=b" " * (3 << 20))
            assert answer.status_code == 400
            assert "too large" in answer.json()["error"]["message"]

    run(scenario())


def test_memory_follows_the_image_where_none_is_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            body = {"name": "deb", "spec": {"image": "debian"}, "start": False}
            assert (await api.call("POST", "/instances", body))["memory"] == 384 * MiB
            body = {"name": "deb2", "spec": {"image": "debian", "memory": {"size": "128MiB"}}}
            error = await api.refused("POST", "/instances", body, status=400)
            assert error["hint"] == "use --memory 384MiB or more"

    run(scenario())


def test_create_refuses_what_the_host_cannot_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            for spec, code in (
                ({"image": "tiny", "memory": {"size": "7GiB"}}, "no_capacity"),
                ({"image": "tiny", "machine": {"accelerator": "kvm"}}, "unsupported"),
                ({"image": "tiny", "machine": {"type": "q36"}}, "unsupported"),
            ):
                error = await api.refused(
                    "POST", "/instances", {"name": "big", "spec": spec, "start": True}, status=409
                )
                assert error["code"] == code
                assert list(error["details"]["hosts"]) == ["h1"]
            error = await api.refused("POST", "/instances", {"spec": {"image": "tinny"}}, status=404)
            assert "did you mean tiny?" in error["hint"]
            error = await api.refused("POST", "/instances", {"spec": {"image": "x"}}, status=404)
            assert "inn image build tiny" in error["hint"]

    run(scenario())


def test_two_at_once_cannot_have_the_same_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            facts = HOST.facts.model_copy(update={"memory_available_bytes": 700 * MiB})
            await api.repo.put_host(HOST.model_copy(update={"facts": facts, "observed_at": 1.0}))
            bodies = [create_body(f"vm{n}") for n in range(4)]
            answers = await asyncio.gather(*(api.http.post("/v1/instances", json=body) for body in bodies))
            assert sorted(answer.status_code for answer in answers) == [200, 200, 409, 409]

    run(scenario())


def test_names_are_unique_and_made_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            error = await api.refused("POST", "/instances", create_body("off"), status=409)
            assert error["code"] == "name_taken"
            names = set()
            for _ in range(3):
                made = await api.call("POST", "/instances", {"spec": {"image": "tiny"}})
                names.add(made["name"])
            assert len(names) == 3
            assert all(name.startswith("tiny-") for name in names)

    run(scenario())


def test_a_failed_start_leaves_nothing_unless_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            api.settler.fail["web"] = StartFailed("QEMU died: no such device", hint="see the log")
            error = await api.refused("POST", "/instances", create_body(), status=500)
            assert (error["code"], error["message"]) == ("start_failed", "QEMU died: no such device")
            await api.refused("GET", "/instances/web", status=404)
            # the name is free again at once
            api.settler.fail.clear()
            await api.call("POST", "/instances", create_body())

    run(scenario())


def test_errors_of_a_start_tell_the_last_serial_lines(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            api.settler.ready = False
            (tmp_path / "web.console").write_bytes(b"booting\r\n\x1b[31mKernel panic\x00 - no init\r\n")
            body = create_body(wait="ready", timeout_s=0.2)
            error = await api.refused("POST", "/instances", body, status=500)
            assert error["code"] == "guest_timeout"
            assert error["details"]["console"][-1] == "[31mKernel panic - no init"
            assert "Kernel panic" in error["message"]
            await api.refused("GET", "/instances/web", status=404)
            error = await api.refused("POST", "/instances", {**body, "keep_on_failure": True}, status=500)
            assert (await api.call("GET", "/instances/web"))["state"] == "running"

    run(scenario())


def test_a_failed_creation_removes_its_own_instance_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            made = await api.call("POST", "/instances", create_body(start=False))
            with pytest.raises(NotFound):
                await rm(api.repo, "web", force=True, uid="another")
            assert await api.call("GET", "/instances/web") == made

    run(scenario())


def test_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            api.settler.ready = False
            await api.call("POST", "/instances", create_body())
            waiting = asyncio.create_task(api.call("GET", "/instances/web/wait", **{"for": "stopped"}))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await api.settler.end("web")
            assert (await waiting)["state"] == "stopped"
            error = await api.refused("GET", "/instances/web/wait", status=500, **{"for": "ready"})
            assert error["code"] == "start_failed"
            assert "guest-shutdown" in error["message"]

    run(scenario())


def test_a_hung_guest_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "REMOVE_AFTER_FAILURE_S", 0.1)

    async def scenario() -> None:
        async with serve(tmp_path) as api:
            api.settler.hang.add("stuck")
            body = create_body("stuck", timeout_s=1.0)
            stuck = asyncio.create_task(api.refused("POST", "/instances", body, status=500))
            await asyncio.sleep(0.02)
            begun = time.monotonic()
            await api.call("POST", "/instances", create_body("fine"))
            await api.call("POST", "/instances/fine/stop")
            assert time.monotonic() - begun < 0.8
            assert not stuck.done()
            assert (await stuck)["code"] == "guest_timeout"
            assert (await api.repo.view("stuck")).record.wanted.removed

    run(scenario())


def test_fifty_verbs_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            names = [f"vm{n}" for n in range(15)]
            for verb in ("", "/pause", "/resume", "/kill"):
                await asyncio.gather(
                    *(
                        api.call("POST", f"/instances/{name}{verb}")
                        if verb
                        else api.call("POST", "/instances", create_body(name))
                        for name in names
                    )
                )
            listed = (await api.call("GET", "/instances"))["instances"]
            assert {one["state"] for one in listed} == {"stopped"}

    run(scenario())


def test_apply(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            spec: dict[str, Any] = {"image": "tiny", "cpu": {"count": 1}}
            done = await api.call("PUT", "/instances/app", {"spec": spec})
            assert (done["created"], done["changed"]) == (True, [])
            await api.call("POST", "/instances/app/start")
            spec |= {"cpu": {"count": 2}, "labels": {"a": "b"}}
            foreseen = await api.call("PUT", "/instances/app", {"spec": spec}, dry_run=True)
            assert foreseen["instance"]["cpus"] == 1
            done = await api.call("PUT", "/instances/app", {"spec": spec})
            assert (done["changed"], done["needs_restart"]) == (["cpu.count", "labels"], ["cpu.count"])
            assert foreseen["changed"] == done["changed"]
            assert done["instance"]["spec"]["machine"]["type"] == "pc-q35-7.2"
            # what show prints is taken back unchanged
            again = await api.call("PUT", "/instances/app", {"spec": done["instance"]["spec"]})
            assert again["changed"] == []
            # who has not seen what others changed meanwhile is told
            read = done["instance"]["spec"]
            mine = {**read, "labels": {"a": "mine"}}
            theirs = await api.call("PUT", "/instances/app", {"spec": {**read, "labels": {}}, "before": read})
            assert theirs["changed"] == ["labels"]
            error = await api.refused("PUT", "/instances/app", {"spec": mine, "before": read}, status=409)
            assert error["code"] == "conflict" and error["details"]["stale"]
            read = theirs["instance"]["spec"]
            assert (await api.call("PUT", "/instances/app", {"spec": mine, "before": read}))["changed"]
            for wrong in ({**spec, "image": "debian"}, {**spec, "disks": [{"name": "d", "size": "1GiB"}]}):
                error = await api.refused("PUT", "/instances/app", {"spec": wrong}, status=409)
                assert error["code"] == "unsupported"

    run(scenario())


def test_set(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            done = await api.call("PATCH", "/instances/off", {"labels": {"team": "x"}})
            assert done["spec"]["labels"] == {"team": "x"}
            assert done["spec"]["restart_policy"] == "never"
            error = await api.refused("PATCH", "/instances/off", {"memory": "1GiB"}, status=400)
            assert error["details"]["field"] == ["memory"]

    run(scenario())


def test_a_stop_the_guest_ignored_is_withdrawn_by_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            await api.call("POST", "/instances", create_body())
            api.settler.fail["web"] = GuestTimeout("web did not shut down within 1 s")
            error = await api.refused("POST", "/instances/web/stop", {"timeout_s": 1}, status=500)
            assert error["code"] == "guest_timeout"
            api.settler.fail.clear()
            view = await api.call("POST", "/instances/web/start")
            assert (view["state"], view["wanted"]["epoch"], view["wanted"]["power"]) == ("running", 1, "on")

    run(scenario())


def test_a_paused_one_is_not_started_anew_after_a_stop_it_ignored(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            await api.call("POST", "/instances", create_body())
            await api.call("POST", "/instances/web/pause")
            api.settler.fail["web"] = GuestTimeout("web did not shut down within 1 s")
            await api.refused("POST", "/instances/web/stop", {"timeout_s": 1}, status=500)
            api.settler.fail.clear()
            error = await api.refused("POST", "/instances/web/start", status=409)
            assert error["hint"] == "inn resume web"

    run(scenario())


def test_a_timeout_is_told_as_it_was_asked_for(tmp_path: Path) -> None:
    """Even where part of it was spent on getting it to run."""

    async def scenario() -> None:
        async with serve(tmp_path) as api:
            api.settler.ready = False
            body = create_body() | {"wait": "ready", "timeout_s": 0.2}
            error = await api.refused("POST", "/instances", body, status=500)
            assert "within 0.2 s" in error["message"]

    run(scenario())


def test_overtaken_by_a_verb_that_failed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            await api.call("POST", "/instances", create_body())
            api.settler.hang.add("web")
            first = asyncio.create_task(api.refused("POST", "/instances/web/stop", status=409))
            while (await api.repo.view("web")).record.wanted.generation == 1:
                await asyncio.sleep(0.005)
            api.settler.hang.clear()
            api.settler.fail["web"] = Conflict("cannot")
            await api.refused("POST", "/instances/web/kill", status=409)
            assert "Overtaken" in (await first)["message"]

    run(scenario())


def test_damaged_records_hide_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            from innkeeper.store.kv import Put

            await api.store.txn([], [Put("instances/bad", b"{oops")])
            await _index_reached(api)
            listed = (await api.call("GET", "/instances"))["instances"]
            assert [(one["name"], one["state"]) for one in listed] == [("bad", "damaged"), ("off", "stopped")]
            error = await api.refused("GET", "/instances/bad", status=500)
            assert error["code"] == "store_corrupt"
            assert "instances/bad" in error["message"]

    run(scenario())


def test_bugs_are_answered_without_a_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            api.live.broken = ZeroDivisionError("secret internals")
            error = await api.refused("GET", "/instances/off/screenshot", status=500)
            assert error["code"] == "bug"
            assert "secret" not in json.dumps(error)
            record = next(r for r in caplog.records if r.message == "bug")
            assert record.innkeeper_fields["id"] == error["details"]["id"]  # type: ignore[attr-defined]

    run(scenario())


@pytest.mark.parametrize("count", [500])
def test_list_of_many_is_complete_and_sorted(tmp_path: Path, count: int) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            for number in range(count):
                one = record(f"vm-{number:03d}")
                await api.repo.create_instance(one)
                status = InstanceStatus(state=State.RUNNING, generation=1, created=True, ready=True)
                await api.repo.put_status(one.name, one.uid, status)
            await _index_reached(api)
            listed = (await api.call("GET", "/instances"))["instances"]
            assert [one["name"] for one in listed] == sorted(one["name"] for one in listed)
            assert len(listed) == count + 1
            assert all(one["ready"] for one in listed if one["name"] != "off")

    run(scenario())


async def _index_reached(api: Api) -> None:
    await api.app.state.context.index.reached(await api.store.revision())
