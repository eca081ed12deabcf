"""Forks that go when the client that asked for them is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from api_harness import Api, serve

from fakes.asgi import Streaming
from helpers import run

TOKEN = "0123456789abcdef"


async def names(api: Api) -> list[str]:
    return [view.name for view in await api.repo.instances()]


def test_held_forks_go_with_their_client_but_for_those_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            async with Streaming(api.app, "/holds", method="POST", body={"token": TOKEN}) as hold:
                assert await hold.next() == b"held\n"
                body = {"count": 3, "hold": TOKEN, "remove_when_ended": True, "wait": "running"}
                await api.call("POST", "/instances/off/fork", body)
                kept = await api.call("POST", "/instances/off-2/keep")
                assert not kept["wanted"]["remove_when_ended"] and kept["wanted"]["hold"] == ""
                assert await names(api) == ["off", "off-1", "off-2", "off-3"]
                await api.refused("POST", "/holds", {"token": TOKEN}, status=409)
            async with asyncio.timeout(5):
                while await names(api) != ["off", "off-2"]:
                    await asyncio.sleep(0.01)

    run(scenario())


def test_a_hold_that_is_not_open_holds_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            error = await api.refused("POST", "/instances/off/fork", {"hold": TOKEN}, status=409)
            assert error["code"] == "conflict"
            await api.refused("POST", "/holds", {"token": "no token"}, status=400)
            assert await names(api) == ["off"]

    run(scenario())


def test_a_client_that_goes_while_it_forks_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            api.settler.hang.add("off-1")
            body = {"hold": TOKEN, "wait": "running", "timeout_s": 5}
            async with Streaming(api.app, "/holds", method="POST", body={"token": TOKEN}) as hold:
                await hold.next()
                forking = asyncio.ensure_future(api.http.post("/v1/instances/off/fork", json=body))
                while "off-1" not in await names(api):
                    await asyncio.sleep(0.01)
                api.settler.hang.clear()
            assert (await forking).status_code in (404, 409)  # there is nobody to read it
            async with asyncio.timeout(5):
                while await names(api) != ["off"]:
                    await asyncio.sleep(0.01)

    run(scenario())


def test_a_daemon_that_stops_leaves_what_is_held(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            async with Streaming(api.app, "/holds", method="POST", body={"token": TOKEN}) as hold:
                await hold.next()
                await api.call("POST", "/instances/off/fork", {"hold": TOKEN, "wait": "running"})
                api.deps.closing.set()
            await asyncio.sleep(0.05)
            assert await names(api) == ["off", "off-1"]

    run(scenario())
