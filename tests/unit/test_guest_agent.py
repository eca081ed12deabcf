"""The guest agent's client against an agent that lies, stalls, hangs up and answers others' questions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from fakes.qga import FakeQga, HangUp, Silence
from helpers import run
from innkeeper.errors import AgentMissing, Failed, GuestTimeout, InnkeeperError, Unsupported
from innkeeper.guest.agent import GuestAddress, GuestAgent

Scenario = Callable[[FakeQga, GuestAgent], Coroutine[Any, Any, None]]


def play(tmp_path: Path, scenario: Scenario, **options: Any) -> None:
    async def whole() -> None:
        async with FakeQga(tmp_path / "qga.sock") as fake:
            agent = GuestAgent(fake.socket_path, **options)
            try:
                await scenario(fake, agent)
            finally:
                await agent.close()

    run(whole())


def test_typed_answers(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        await agent.ping()
        fake.disabled.add("guest-exec")
        info = await agent.info()
        assert info.version == "7.2.22"
        assert "guest-ping" in info.commands and "guest-exec" not in info.commands
        assert await agent.host_name() == "fake"
        assert (await agent.os_info()).id == "debian"
        assert "\x1b" not in (await agent.os_info()).pretty_name
        assert await agent.network_interfaces() == (
            GuestAddress("eth0", "52:54:00:00:00:01", "10.0.2.15", 24),
            GuestAddress("eth0", "52:54:00:00:00:01", "fe80::1", 64),
        )
        await agent.set_time(10**18)
        await agent.set_time()
        assert fake.set_times == [10**18, None]
        assert await agent.fsfreeze_freeze() == 2
        assert await agent.fsfreeze_status() == "frozen"
        assert await agent.fsfreeze_thaw() == 2
        assert await agent.fsfreeze_status() == "thawed"

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "stale",
    [
        b"garbage \x00\x01\xfe",
        b'{"return": {"half": "an ans',
        b'{"return": 1}\n{"return": {}}\n',
        b'\xff{"return": 12345}\n',
        b'\xff{"ret',
        b"\xff\xff\n\xffnot json\n",
        b'\xff{"return": "' + b"x" * 300_000,
    ],
)
def test_what_an_earlier_client_left_is_ignored(tmp_path: Path, stale: bytes) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        fake.stale = stale
        assert await agent.host_name() == "fake"

    play(tmp_path, scenario)


def test_half_a_command_of_an_earlier_client_is_ignored(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        with socket.socket(socket.AF_UNIX) as earlier:
            earlier.connect(str(fake.socket_path))
            earlier.send(b'{"execute": "guest-shut')
            await asyncio.sleep(0.01)
        assert await agent.host_name() == "fake"

    play(tmp_path, scenario)


def test_a_late_answer_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        await agent.ping()
        fake.delays_s["guest-get-osinfo"] = 0.1
        with pytest.raises(GuestTimeout, match=r"guest-get-osinfo within 0\.02 s"):
            await agent.execute("guest-get-osinfo", deadline_s=0.02)
        assert await agent.host_name() == "fake"
        assert fake.calls.count("guest-sync-delimited") == 2

    play(tmp_path, scenario)


def test_a_lost_answer_and_a_cancelled_command_cost_one_handshake(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        await agent.ping()
        fake.faults["guest-ping"] += [Silence, Silence]
        with pytest.raises(GuestTimeout):
            await agent.ping(deadline_s=0.05)
        waiting = asyncio.create_task(agent.ping())
        await asyncio.sleep(0.05)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert await agent.host_name() == "fake"
        await agent.ping()
        assert fake.calls.count("guest-sync-delimited") == 3

    play(tmp_path, scenario)


def test_hang_up_is_reported_and_the_next_command_connects_again(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        fake.faults["guest-ping"].append(HangUp)
        with pytest.raises(AgentMissing, match="guest-ping") as caught:
            await agent.ping()
        assert caught.value.hint
        await agent.ping()

    play(tmp_path, scenario)


def test_a_new_qemu_behind_the_same_path_is_found(tmp_path: Path) -> None:
    async def scenario() -> None:
        agent = GuestAgent(tmp_path / "qga.sock")
        for _ in range(2):
            async with FakeQga(tmp_path / "qga.sock"):
                await agent.ping()
            await asyncio.sleep(0.01)
        await agent.close()

    run(scenario())


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        with pytest.raises(AgentMissing, match="nothing listens"):
            run(GuestAgent(tmp_path / "silent.sock").ping())
        silent.listen()

        async def scenario() -> None:
            agent = GuestAgent(tmp_path / "silent.sock")
            with pytest.raises(AgentMissing, match=r"within 0\.05 s"):
                await agent.ping(deadline_s=0.05)
            with pytest.raises(AgentMissing, match=r"within 0\.05 s"):
                await agent.wait_ready(deadline_s=0.05)
            await agent.close()

        run(scenario())
    with pytest.raises(AgentMissing, match="nothing listens") as caught:
        run(GuestAgent(tmp_path / "none.sock").ping())
    assert "not running" in caught.value.hint


def test_commands_take_turns(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        answers = await asyncio.gather(
            *(agent.host_name() if n % 2 else agent.fsfreeze_status() for n in range(40))
        )
        assert list(answers) == ["thawed", "fake"] * 20

    play(tmp_path, scenario)


def test_unknown_and_disabled_commands(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        with pytest.raises(Unsupported, match="guest-nonsense"):
            await agent.execute("guest-nonsense")
        fake.disabled.add("guest-exec")
        with pytest.raises(Unsupported, match="guest-exec") as caught:
            await agent.exec_start("true")
        assert caught.value.hint
        await agent.ping()
        assert fake.calls.count("guest-sync-delimited") == 1

    play(tmp_path, scenario)


def test_an_error_keeps_the_agents_words_but_not_its_escapes(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        with pytest.raises(Failed, match="No such file or directory") as caught:
            await agent.file_open("/no/such/file", "r")
        assert "/no/such/file" in caught.value.details["desc"]
        evil = {"error": {"class": "GenericError", "desc": "\x1b[2J" + "x" * 10_000}}
        fake.faults["guest-ping"].append(json.dumps(evil).encode() + b"\n")
        with pytest.raises(Failed) as caught:
            await agent.ping()
        assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 1000

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "answer",
    [
        b"no json\n",
        b"[1, 2]\n",
        b"{}\n",
        b"\n",
        b'{"return": ' + b"[" * 100_000 + b"\n",
        b'{"return": ' + b"9" * 10_000 + b"}\n",
        b'{"error": "text"}\n',
        b'{"error": {"desc": {}}}\n',
        b"\xfe\xfd\xc3\n",
        b'{"return": [1]}\n',
        b'{"return": {"version": 7, "supported_commands": []}}\n',
        b'{"return": {"supported_commands": [1]}}\n',
        b'{"return": {"supported_commands": {}}}\n',
    ],
)
def test_nonsense_is_an_error_of_ours(tmp_path: Path, answer: bytes) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        fake.faults["guest-info"].append(answer)
        with pytest.raises(Failed):
            await agent.info()
        await agent.info()

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "command, answer",
    [
        ("guest-network-get-interfaces", [{"name": "a", "ip-addresses": [{"ip-address": "not one"}]}]),
        ("guest-network-get-interfaces", [{"name": 1}]),
        ("guest-network-get-interfaces", [{"ip-addresses": [{"ip-address": "10.0.0.1", "prefix": "x"}]}]),
        ("guest-fsfreeze-status", "purple"),
        ("guest-fsfreeze-freeze", True),
        ("guest-exec", {"pid": "1"}),
        ("guest-exec-status", {"exited": True, "out-data": "%%%"}),
        ("guest-exec-status", {"exited": True, "exitcode": "0"}),
        ("guest-file-read", {"buf-b64": 5}),
        ("guest-file-read", {"buf-b64": "AAAAAAAAAAAAAAAA"}),
        ("guest-file-write", {"count": 1}),
        ("guest-get-osinfo", {"id": None}),
    ],
)  # fmt: skip
def test_wrong_types_are_an_error_of_ours(tmp_path: Path, command: str, answer: object) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "guest-network-get-interfaces": agent.network_interfaces,
            "guest-fsfreeze-status": agent.fsfreeze_status,
            "guest-fsfreeze-freeze": agent.fsfreeze_freeze,
            "guest-exec": lambda: agent.exec_start("true"),
            "guest-exec-status": lambda: agent.exec_status(1),
            "guest-file-read": lambda: agent.file_read(1, 3),
            "guest-file-write": lambda: agent.file_write(1, b"abc"),
            "guest-get-osinfo": agent.os_info,
        }
        fake.faults[command].append(json.dumps({"return": answer}).encode() + b"\n")
        with pytest.raises(Failed):
            await calls[command]()

    play(tmp_path, scenario)


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        fake.faults["guest-ping"].append(b"x" * 3_000_000)
        with pytest.raises(Failed, match="more than 1000000 bytes"):
            await agent.ping()
        await agent.ping()

    play(tmp_path, scenario, line_limit_bytes=1_000_000)


def test_garbage_without_end_ends_with_the_deadline(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"g" * 65536)
                    await writer.drain()

        server = await asyncio.start_unix_server(flood, tmp_path / "qga.sock")
        agent = GuestAgent(tmp_path / "qga.sock")
        with pytest.raises(AgentMissing, match="within"):
            await agent.ping(deadline_s=0.2)
        await agent.close()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.01)

    run(scenario())


def test_shutdown_takes_silence_for_consent(tmp_path: Path) -> None:
    async def scenario(fake: FakeQga, agent: GuestAgent) -> None:
        await agent.shutdown(grace_s=0.02)
        fake.faults["guest-shutdown"].append(HangUp)
        await agent.shutdown("reboot", grace_s=5)
        fake.faults["guest-shutdown"].append(b'{"error": {"class": "GenericError", "desc": "no shutdown"}}\n')
        with pytest.raises(Failed, match="no shutdown"):
            await agent.shutdown(grace_s=5)

    play(tmp_path, scenario)


def test_shutdown_without_agent_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(InnkeeperError):
        run(GuestAgent(tmp_path / "none.sock").shutdown())
