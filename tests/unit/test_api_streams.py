"""Events, logs, files, images, host, and the WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_harness import TINY, Api, record, serve

from fakes.asgi import Socket, Streaming
from helpers import run
from innkeeper.api import sockets
from innkeeper.api.respond import first_of, with_pulse
from innkeeper.spec.instance import InstanceStatus


def test_events_from_now_on_and_resumed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            async with Streaming(api.app, "/events") as stream:
                assert await stream.next() == b": watching\n\n"
                before = await api.store.revision()
                await api.repo.put_status("off", "x", InstanceStatus(pid=1))
                await api.repo.put_status("off", "x", InstanceStatus(pid=2))
                first, second = [(await stream.events())[0] for _ in range(2)]
                assert (first["event"], first["id"]) == ("change", str(before + 1))
                assert first["data"]["key"] == "status/off"
                assert (first["data"]["kind"], first["data"]["value"]["pid"]) == ("put", 1)
            headers = [(b"last-event-id", first["id"].encode())]
            async with Streaming(api.app, "/events?from=1&prefix=status/", headers=headers) as stream:
                await stream.next()
                assert await stream.events() == [second]
            async with Streaming(api.app, f"/events?from={before + 1}") as stream:
                await stream.next()
                assert (await stream.events())[0] == first

    run(scenario())


def test_events_of_one_revision_share_the_last_ones_id(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api, Streaming(api.app, "/events") as stream:
            await stream.next()
            view = await api.repo.view("off")
            await api.repo.remove_instance("off", view.record.uid)
            events = await stream.events()
            assert [event["data"]["kind"] for event in events] == ["delete", "delete"]
            assert ["id" in event for event in events] == [False, True]
            assert events[0]["data"]["value"] is None

    run(scenario())


def test_events_that_are_no_longer_known(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            revision = await api.store.revision()
            await api.store.compact(revision)
            async with Streaming(api.app, "/events?from=1") as stream:
                chunk = await stream.next()
                if chunk == b": watching\n\n":
                    chunk = await stream.next()
                assert chunk == f'event: compacted\ndata: {{"revision":{revision}}}\n\n'.encode()
                assert await stream.next() is None
            error = await api.refused("GET", "/events", status=400, **{"from": -1})
            assert error["code"] == "bad_request"

    run(scenario())


def test_endless_streams_end_with_the_daemon(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api, Streaming(api.app, "/events") as stream:
            await stream.next()
            api.deps.closing.set()
            assert await stream.next() is None
            await stream.task

    run(scenario())


def test_pulse() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"1"
        await asyncio.sleep(0.08)
        yield b"2"

    async def scenario() -> None:
        chunks = [chunk async for chunk in with_pulse(slow(), b".", 0.03)]
        assert chunks[0] == b"1"
        assert chunks[-1] == b"2"
        assert chunks[1:-1] in ([b"."], [b".", b"."])

    run(scenario())


def test_first_of_cancels_the_others_and_passes_errors_on() -> None:
    async def scenario() -> None:
        ended = []

        async def endless() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        async def fails() -> None:
            await asyncio.sleep(0)
            raise ValueError

        with pytest.raises(ValueError):
            await first_of(endless(), fails())
        assert ended == [True]

    run(scenario())


def test_logs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            log = tmp_path / "off.console"
            assert (await api.http.get("/v1/instances/off/logs")).content == b""
            log.write_bytes(b"x" * 100_000 + b"end\n")
            assert len((await api.http.get("/v1/instances/off/logs")).content) == 100_004
            tail = await api.http.get("/v1/instances/off/logs", params={"tail_bytes": 4})
            assert tail.content == b"end\n"
            async with Streaming(api.app, "/instances/off/logs?follow=true&tail_bytes=4") as stream:
                assert await stream.next() == b"end\n"
                with log.open("ab") as file:
                    file.write(b"more\n")
                assert await stream.next() == b"more\n"
                log.write_bytes(b"new\n")  # begun anew
                assert await stream.next() == b"new\n"
                view = await api.repo.view("off")
                await api.repo.remove_instance("off", view.record.uid)
                assert await stream.next() is None
            await api.refused("GET", "/instances/tiny/logs", status=400, source="dmesg")

    run(scenario())


def test_files(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            data = bytes(range(256)) * 20_000  # larger than any other body may be
            url, query = "/v1/instances/off/files", {"path": "/tmp/x", "mode": "0755"}
            await api.repo.create_instance(record("on"))
            await api.app.state.context.index.reached(await api.store.revision())
            put = await api.http.put(url.replace("off", "on"), params=query, content=data)
            assert put.json() == {"bytes": len(data)}
            assert api.live.modes == {"/tmp/x": 0o755}
            got = await api.http.get(url.replace("off", "on"), params={"path": "/tmp/x"})
            assert got.content == data
            for wrong in ({"path": "relative"}, {"path": "/x", "mode": "rwx"}):
                answer = await api.http.put(url, params=wrong, content=b"")
                assert answer.status_code == 400
            assert (await api.http.put(url, params=query, content=b"x")).status_code == 409

    run(scenario())


def test_screenshot_and_argv(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            await api.call("POST", "/instances", {"name": "on", "spec": {"image": "tiny"}, "start": True})
            picture = await api.http.get("/v1/instances/on/screenshot")
            assert (picture.content, picture.headers["content-type"]) == (b"\x89PNG", "image/png")
            assert (await api.call("GET", "/instances/on/argv"))["argv"][1:] == ["-name", "on"]

    run(scenario())


def test_images(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            names = [image["name"] for image in (await api.call("GET", "/images"))["images"]]
            assert names == ["debian", "tiny"]
            error = await api.refused("DELETE", "/images/tiny", status=409)
            assert error["message"] == "Image tiny is in use by off"
            assert (await api.call("GET", "/images/tiny"))["removing"] is False
            await api.repo.put_image(TINY.model_copy(update={"name": "alias"}))
            await api.call("DELETE", "/images/tiny")  # its files stay, for alias has them
            await api.call("DELETE", "/images/debian")
            await api.refused("GET", "/images/debian", status=404)

    run(scenario())


def test_image_build_and_import_tell_their_progress(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            built = await api.http.post("/v1/images/build", json={"recipe": "tiny", "name": "own"})
            assert built.headers["content-type"].startswith("text/event-stream")
            blocks = [block for block in built.text.split("\n\n") if block.startswith("event")]
            kinds = [block.split("\n")[0] for block in blocks]
            assert kinds == ["event: progress", "event: progress", "event: done"]
            assert json.loads(blocks[-1].split("data: ")[1])["image"]["name"] == "own"
            answer = await api.http.post("/v1/images/import", json={"name": "disk", "path": "/x"})
            assert '"code":"bad_image"' in answer.text
            assert "event: error" in answer.text
            await api.refused("POST", "/images/import", {"name": "own", "path": "/x"}, status=409)
            await api.refused("POST", "/images/import", {"name": "own", "path": "x"}, status=400)
            await api.refused("POST", "/images/build", {"recipe": "gentoo"}, status=400)

    run(scenario())


def test_what_goes_into_an_image_is_checked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            body = {"recipe": "debian", "name": "web", "packages": ["nginx", "libstdc++6"], "size": "8GiB"}
            assert "event: done" in (await api.http.post("/v1/images/build", json=body)).text
            assert api.images.asked == (("nginx", "libstdc++6"), 8 << 30)
            for wrong in (
                {"packages": ["a,b"]},
                {"packages": ["../x"]},
                {"packages": [""]},
                {"size": "much"},
            ):
                await api.refused("POST", "/images/build", {"recipe": "debian"} | wrong, status=400)

    run(scenario())


def test_a_client_that_leaves_cancels_its_import(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            body = {"name": "disk", "path": "/endless"}
            async with Streaming(api.app, "/images/import", method="POST", body=body) as stream:
                await stream.next()
                assert (await stream.events())[0]["event"] == "progress"
            assert api.images.cancelled

    run(scenario())


def test_a_client_that_leaves_stops_waiting(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            api.settler.ready = False
            await api.call("POST", "/instances", {"name": "on", "spec": {"image": "tiny"}, "start": True})
            async with Streaming(api.app, "/instances/on/wait?for=ready"):
                await asyncio.sleep(0.05)

    run(scenario())


def test_host_version_doctor(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            version = await api.call("GET", "/version")
            assert (version["api"], version["host"], version["mode"]) == (1, "h1", "session")
            assert (await api.call("GET", "/host"))["facts"]["qemu_version"] == "7.2.0"
            assert (await api.call("GET", "/doctor"))["findings"][0]["verdict"] == "warn"
            assert (await api.call("POST", "/doctor/fix"))["findings"][0]["verdict"] == "ok"

    run(scenario())


def test_openapi_is_complete(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            document = await api.call("GET", "/openapi.json")
            assert document["info"]["title"] == "Innkeeper"
            assert document["info"]["version"] == "0.1.0"
            for path, operations in document["paths"].items():
                assert path.startswith("/v1/") or path == "/metrics"  # where Prometheus looks
                for method, operation in operations.items():
                    assert operation["summary"], (method, path)
                    assert {"200", "400", "404", "409", "500"} <= set(operation["responses"])
                    assert "422" not in operation["responses"]
                    assert len(operation["responses"]["200"]["content"]) == 1, (method, path)
            documented = {(m.upper(), path) for path, found in document["paths"].items() for m in found}
            verbs = ("start", "stop", "fork", "template", "clone", "snapshots")
            assert {("POST", f"/v1/instances/{{name}}/{verb}") for verb in verbs} <= documented
            assert len(documented) >= 41

    run(scenario())


# -- WebSockets ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serve_on(directory: Path) -> AsyncIterator[Api]:
    """With an instance `on` that runs."""
    async with serve(directory) as api:
        await api.call("POST", "/instances", {"name": "on", "spec": {"image": "tiny"}, "start": True})
        yield api


def test_console(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve_on(tmp_path) as api:
            async with Socket(api.app, "/instances/on/console") as socket:
                assert await socket.next() == b"login: "
                await socket.send(b"root\r")
                assert await socket.next() == b"root\r"
                await socket.send(b"exit")
                assert await socket.json() == {"ended": True}
                assert await socket.next() == 1000
            assert api.live.consoles[0].closed
            async with Socket(api.app, "/instances/on/console") as socket:
                await socket.next()
            assert api.live.consoles[1].closed

    run(scenario())


@pytest.mark.parametrize(
    ("name", "what", "code"),
    [("off", "console", "wrong_state"), ("zzz", "console", "not_found"), ("off", "exec", "wrong_state")],
)
def test_sockets_that_cannot_be(tmp_path: Path, name: str, what: str, code: str) -> None:
    async def scenario() -> None:
        async with serve_on(tmp_path) as api, Socket(api.app, f"/instances/{name}/{what}") as socket:
            await socket.send('{"argv": ["true"]}')
            assert (await socket.json())["error"]["code"] == code
            assert await socket.next() == 1011

    run(scenario())


def test_exec(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve_on(tmp_path) as api:
            async with Socket(api.app, "/instances/on/exec") as socket:
                await socket.send('{"argv": ["cat"], "stdin": true}')
                await socket.send(b"hello")
                assert await socket.next() == b"\x01hello"
                await socket.send("eof")
                assert await socket.json() == {"exit_status": 0}
            async with Socket(api.app, "/instances/on/exec") as socket:
                await socket.send('{"argv": ["false"]}')
                assert await socket.next() == b"\x02no\n"
                assert await socket.json() == {"exit_status": 1}
            assert [session.cancelled for session in api.live.execs] == [1, 1]

    run(scenario())


def test_exec_has_a_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve_on(tmp_path) as api, Socket(api.app, "/instances/on/exec") as socket:
            await socket.send('{"argv": ["sleep"], "timeout_s": 0.05}')
            assert (await socket.json())["error"]["code"] == "guest_timeout"
            assert api.live.execs[0].cancelled == 1

    run(scenario())


def test_exec_of_a_client_that_leaves_ends_in_the_guest(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve_on(tmp_path) as api:
            async with Socket(api.app, "/instances/on/exec") as socket:
                await socket.send('{"argv": ["sleep"]}')
                while not api.live.execs:
                    await asyncio.sleep(0)
            assert api.live.execs[0].cancelled == 1

    run(scenario())


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("{", "not JSON"),
        ('{"argv": []}', "argv"),
        ('{"argv": ["x"], "tty": true}', "Unknown field tty"),
        ("[" * 200_000, "not JSON"),
        (b"bytes", "not a small text frame"),
        (b"x" * (2 << 20), "too large"),
    ],
)
def test_exec_that_asks_wrongly(tmp_path: Path, frame: str | bytes, message: str) -> None:
    async def scenario() -> None:
        async with serve_on(tmp_path) as api, Socket(api.app, "/instances/on/exec") as socket:
            await socket.send(frame)
            assert message in (await socket.json())["error"]["message"]
            assert api.live.execs == []

    run(scenario())


def test_bugs_in_sockets_are_answered(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve_on(tmp_path) as api, Socket(api.app, "/instances/on/console") as socket:
            api.live.broken = ZeroDivisionError("secret internals")
            error = (await socket.json())["error"]
            assert error["code"] == "bug"
            assert "secret" not in str(error)

    run(scenario())


def test_idle_sockets_are_kept_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "KEEPALIVE_S", 0.02)

    async def scenario() -> None:
        async with serve_on(tmp_path) as api, Socket(api.app, "/instances/on/console") as socket:
            assert await socket.next() == b"login: "
            assert await socket.next() == b""

    run(scenario())


def test_sockets_end_with_the_daemon(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve_on(tmp_path) as api, Socket(api.app, "/instances/on/exec") as socket:
            await socket.send('{"argv": ["sleep"]}')
            while not api.live.execs:
                await asyncio.sleep(0)
            api.deps.closing.set()
            assert "stopping" in (await socket.json())["error"]["message"]
            assert api.live.execs[0].cancelled == 1

    run(scenario())
