"""explain says what a verb would say, by the verb's own rules, and does nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from api_harness import Api, record, serve
from cli_harness import Inn, inn, server

from fakes.api_server import ApiServer
from fakes.world import World
from helpers import run
from innkeeper import errors
from innkeeper.agent import forkable
from innkeeper.api.verbs.fork import ForkOptions, fork
from innkeeper.clock import SystemClock
from innkeeper.control import forking
from innkeeper.engine.base import RunState
from innkeeper.spec.finding import Finding, asked, block, ok, refuse, warn
from innkeeper.spec.instance import InstanceStatus, State

__all__ = ["inn", "server"]  # fixtures


def told(findings: list[Finding]) -> list[str]:
    return [f"{one.verdict} {one.what}" for one in findings]


def test_a_verb_raises_the_first_finding_that_blocks() -> None:
    first, second = errors.Unsupported("first", hint="do that"), errors.NoCapacity("second")
    with pytest.raises(errors.Unsupported, match="first"):
        refuse([ok("fine"), warn("hm"), block(first), block(second)])
    refuse([ok("fine"), warn("hm")])

    def raising() -> None:
        raise first

    assert next(asked(raising, "fine")).to_dict() == {"verdict": "block", "what": "first", "fix": "do that"}
    assert told(list(asked(lambda: None, "fine"))) == ["ok fine"]


@pytest.mark.parametrize("state", forking.IN_BETWEEN)
def test_in_between_there_is_no_moment(state: State) -> None:
    (found,) = forking.state(record(power="on", epoch=1), InstanceStatus(state=state, epoch=1))
    assert found.verdict == "block" and "try again" in found.fix


# -- on the host ------------------------------------------------------------------------------------------


def play(directory: Path, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def inside() -> None:
        world = World(directory)
        async with world.daemon():
            await scenario(world)

    run(inside())


async def explained(world: World, name: str = "web") -> list[str]:
    return told(await forkable.explain(world.ctx, world.ctx.records[name]))


DISK = {"disks": [{"name": "data", "size": "1MiB"}]}


def test_what_a_fork_would_meet(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await world.create(spec=DISK)
        before = list(world.engine.calls)
        found = await explained(world)
        assert "ok disk data is shared copy-on-write" in found
        assert any(one.startswith("warn no guest agent answers") for one in found)
        assert not any("copied first" in one or "block" in one for one in found)
        assert world.engine.calls == [*before, "run_state web"]  # nothing was done
        world.host.available = 400 << 20  # too little to give it RAM of its own again in the background
        await fork(world.repo, SystemClock(), "web", ForkOptions(until="running", timeout_s=10.0))
        assert any("256 MiB are copied first" in one for one in await explained(world))

    play(tmp_path, scenario)


def test_every_disk_in_place_is_told_and_the_first_is_what_the_verb_raises(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        disks = []
        for name in ("one", "two"):
            (tmp_path / name).write_bytes(bytes(1 << 20))
            disks.append({"name": name, "path": str(tmp_path / name)})
        await world.create(spec={"disks": disks})
        blocks = [one for one in await explained(world) if one.startswith("block")]
        assert ["Disk one" in blocks[0], "Disk two" in blocks[1], len(blocks)] == [True, True, 2]
        with pytest.raises(errors.Unsupported, match="Disk one of web is used in place"):
            await fork(world.repo, SystemClock(), "web", ForkOptions(until="running", timeout_s=10.0))
        await world.create("off", on=False, spec=DISK)
        assert await explained(world, "off") == ["ok disk data is shared copy-on-write"]

    play(tmp_path, scenario)


def test_a_guest_that_has_shut_down_cannot_be_forked() -> None:
    assert list(forkable.of_state(record(), RunState.RUNNING)) == []
    assert [one.verdict for one in forkable.of_state(record(), RunState.SHUT_DOWN)] == ["block"]


# -- over the API -----------------------------------------------------------------------------------------


async def ask(api: Api, name: str, verb: str, **query: Any) -> tuple[bool, list[str]]:
    answer = await api.call("GET", f"/instances/{name}/explain", verb=verb, **query)
    assert answer["verb"] == verb
    return answer["allowed"], [f"{one['verdict']} {one['what']}" for one in answer["findings"]]


def test_verbs_over_the_api(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            body = {"name": "web", "spec": {"image": "tiny"}, "start": True}
            await api.call("POST", "/instances", body)
            allowed, found = await ask(api, "web", "fork", count=3)
            assert allowed and found[0].startswith("ok web is running")
            assert "3 forks of web may take" in found[1] and found[2] == "warn nobody knows"
            allowed, found = await ask(api, "web", "fork", count=900)
            assert not allowed and found[1].startswith("block 900 forks of web may take")
            error = await api.refused("POST", "/instances/web/fork", {"count": 900}, status=409)
            assert f"block {error['message']}" == found[1]
            allowed, found = await ask(api, "web", "fork", cpus=2)
            assert (
                not allowed and "block web runs, and its copies go on from there with its 1 vCPU" in found[1]
            )
            error = await api.refused("POST", "/instances/web/fork", {"cpus": 2}, status=409)
            assert f"block {error['message']}" == found[1] and "inn stop web" in error["hint"]
            assert (await ask(api, "web", "fork", cpus=1))[0]
            for bad in (0, 256, -1):
                await api.refused("POST", "/instances/web/fork", {"cpus": bad}, status=400)
            allowed, found = await ask(api, "web", "rm")
            error = await api.refused("DELETE", "/instances/web", status=409)
            assert not allowed and found == [f"block {error['message']}"]
            assert (await ask(api, "web", "stop"))[1][0].startswith("warn no guest agent")
            assert (await ask(api, "web", "start")) == (True, ["ok it is running already"])
            assert (await ask(api, "off", "stop")) == (True, ["ok it is stopped already"])
            assert (await ask(api, "off", "rm"))[0] and (await ask(api, "off", "fork"))[0]
            allowed, found = await ask(api, "off", "start")
            assert allowed and found[1].startswith("ok h1 has the")
            await api.refused("GET", "/instances/none/explain", status=404, verb="rm")
            await api.refused("GET", "/instances/off/explain", status=400, verb="dance")

    run(scenario())


def test_what_is_being_removed_can_have_nothing_done_to_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serve(tmp_path) as api:
            api.settler.hang.add("gone")
            await api.repo.create_instance(record("gone", removed=True))
            assert (await ask(api, "gone", "rm"))[0]  # again: that waits for it
            for verb in ("fork", "start", "stop"):
                allowed, found = await ask(api, "gone", verb)
                assert not allowed and found == ["block gone is being removed"]

    run(scenario())


# -- on the command line ----------------------------------------------------------------------------------


def test_explain_on_the_command_line(inn: Inn, server: ApiServer) -> None:
    findings = [
        {"verdict": "ok", "what": "web is running", "fix": ""},
        {"verdict": "block", "what": "a disk\x1b[2J in place", "fix": "copy it"},
    ]
    answer = {"verb": "fork", "allowed": False, "findings": findings}
    server.answer("GET", "/v1/instances/web/explain", answer)
    ran = inn("explain", "fork", "web", "--count", "3")
    assert (ran.status, ran.err) == (4, "")
    assert ran.out == "ok     web is running\nblock  a disk\\x1b[2J in place\n       copy it\n"
    assert server.requests[-1].query == {"verb": "fork", "count": "3"}
    ran = inn("explain", "fork", "web", "--json")
    assert ran.status == 4 and ran.json == {"name": "web", **answer}
    server.answer("GET", "/v1/instances/web/explain", {**answer, "allowed": True})
    assert inn("explain", "rm", "web").status == 0
    assert inn("explain", "dance", "web").status == 2
