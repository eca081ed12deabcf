"""The guest-agent client against the real agent and busybox, in a real tiny guest under TCG."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import run
from innkeeper.drivers.run import which
from innkeeper.errors import AgentMissing, BadRequest, NotFound
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.exec import ExecRequest, open_exec
from innkeeper.guest.files import read_file, read_tree, safe_extract, write_file, write_tree

pytestmark = pytest.mark.vm
BOOT_DEADLINE_S = 60.0
BIG = bytes(range(256)) * 4096 * 2


@pytest.fixture(scope="module")
def guest(tiny_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The agent's socket of a tiny guest driven by hand."""
    if which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    place = tmp_path_factory.mktemp("guest")
    manifest = json.loads((tiny_image / "manifest.json").read_text())
    command = (
        "qemu-system-x86_64 -machine q35,accel=tcg -cpu max -m 256 -nodefaults -display none "
        f"-kernel {tiny_image}/kernel -initrd {tiny_image}/initrd -serial file:{place}/serial.log "
        f"-device virtio-serial-pci -chardev socket,id=qga0,path={place}/qga.sock,server=on,wait=off "
        "-device virtserialport,chardev=qga0,name=org.qemu.guest_agent.0"
    ).split()
    append = f"{manifest['append']} {manifest.get('append_tcg', '')}"
    with subprocess.Popen([*command, "-append", append]) as qemu:
        try:
            deadline = time.monotonic() + 10
            while not (place / "qga.sock").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            yield place / "qga.sock"
        finally:
            qemu.kill()


def play(guest: Path, scenario: Callable[[GuestAgent], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        agent = GuestAgent(guest)
        try:
            await agent.wait_ready(deadline_s=BOOT_DEADLINE_S)
            await scenario(agent)
        finally:
            await agent.close()

    run(whole())


async def execute(
    agent: GuestAgent, *argv: str, stdin: bytes | None = None, **options: Any
) -> tuple[int, bytes, bytes]:
    async def feed() -> None:
        if stdin is not None:
            await session.write(stdin)
            await session.close_stdin()

    out = {1: bytearray(), 2: bytearray()}
    async with await open_exec(agent, ExecRequest(argv, stdin=stdin is not None, **options)) as session:
        feeding = asyncio.create_task(feed())
        async for stream, data in session:
            out[stream] += data
        await feeding
        return await session.wait(), bytes(out[1]), bytes(out[2])


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for one in data:
        yield one


def test_the_agent_answers(guest: Path) -> None:
    async def scenario(agent: GuestAgent) -> None:
        await agent.ping()
        assert "guest-exec" in (await agent.info()).commands
        assert (await agent.os_info()).machine == "x86_64"
        assert await agent.host_name()
        assert all(one.address not in ("127.0.0.1", "::1") for one in await agent.network_interfaces())
        await agent.set_time(1_700_000_000 * 10**9)
        _, out, _ = await execute(agent, "date", "+%s")
        assert 1_700_000_000 <= int(out) < 1_700_000_060

    play(guest, scenario)


def test_a_second_client_waits_for_the_first(guest: Path) -> None:
    async def scenario(agent: GuestAgent) -> None:
        second = GuestAgent(guest)
        with pytest.raises(AgentMissing):
            await second.ping(deadline_s=0.3)
        await agent.close()
        await second.ping()
        await second.close()

    play(guest, scenario)


def test_commands(guest: Path) -> None:
    async def scenario(agent: GuestAgent) -> None:
        assert await execute(agent, "true") == (0, b"", b"")
        assert await execute(agent, "sh", "-c", "echo a; echo b >&2; exit 3") == (3, b"a\n", b"b\n")
        assert await execute(agent, "printf", "%s|", "a b", "*", "$X", "") == (0, b"a b|*|$X||", b"")
        env = {"X": "a 'b'\nc"}
        assert await execute(agent, "sh", "-c", 'printf %s "$X"; pwd', env=env, cwd="/proc") == (
            0,
            b"a 'b'\nc/proc\n",
            b"",
        )
        status, _, err = await execute(agent, "no-such-command")
        assert status == 127 and b"not found" in err
        status, _, err = await execute(agent, "/proc/version")
        assert status == 126 and b"ermission denied" in err
        assert (await execute(agent, "sh", "-c", "kill -9 $$"))[0] == 137
        assert await execute(agent, "sh", "-c", "sleep 0.4; echo a; sleep 0.4; echo b") == (0, b"a\nb\n", b"")

    play(guest, scenario)


def test_much_data_both_ways(guest: Path) -> None:
    async def scenario(agent: GuestAgent) -> None:
        status, out, _ = await execute(agent, "seq", "1", "500000")
        assert status == 0 and out == b"".join(b"%d\n" % n for n in range(1, 500_001))
        status, out, _ = await execute(agent, "md5sum", stdin=BIG)
        assert status == 0 and out.split()[0].decode() == hashlib.md5(BIG).hexdigest()
        assert await execute(agent, "cat", stdin=BIG) == (0, BIG, b"")

    play(guest, scenario)


def test_cancel_leaves_nothing_in_the_guest(guest: Path) -> None:
    async def scenario(agent: GuestAgent) -> None:
        for script in ("sleep 1234 & sleep 1235", "yes", "trap '' TERM; sleep 1236; sleep 1237"):
            session = await open_exec(agent, ExecRequest(["sh", "-c", f"echo; {script}"]))
            await anext(aiter(session))
            await session.cancel()
        _, out, _ = await execute(agent, "sh", "-c", "ps; echo; ls /run /tmp")
        listed, _, files = out.decode().partition("\n\n")
        # In brackets: the kernel's own, and what has ended and is yet to be collected by its parent.
        processes = "\n".join(line for line in listed.splitlines() if not line.endswith("]"))
        assert "sleep 123" not in processes and "yes" not in processes
        # This very command has its own two files there.
        assert len({one.split(".")[1] for one in files.split() if one.startswith("innkeeper-exec")}) <= 1

    play(guest, scenario)


def test_what_a_command_leaves_running_lives_on(guest: Path) -> None:
    async def scenario(agent: GuestAgent) -> None:
        status, out, _ = await execute(agent, "sh", "-c", "sleep 1238 & echo $!; exit 4")
        assert status == 4
        assert (await execute(agent, "kill", out.decode().strip()))[0] == 0

    play(guest, scenario)


def test_files_and_trees(guest: Path, tmp_path: Path) -> None:
    async def scenario(agent: GuestAgent) -> None:
        await execute(agent, "mkdir", "-p", "/tmp/tree/sub")
        assert await write_file(agent, "/tmp/tree/sub/file", pieces(BIG), mode=0o750) == len(BIG)
        assert b"".join([one async for one in read_file(agent, "/tmp/tree/sub/file")]) == BIG
        assert (await execute(agent, "stat", "-c", "%a", "/tmp/tree/sub/file"))[1] == b"750\n"
        with pytest.raises(NotFound):
            await anext(read_file(agent, "/tmp/none"))
        with pytest.raises(BadRequest, match="directory"):
            await anext(read_file(agent, "/tmp"))
        stream = b"".join([one async for one in read_tree(agent, "/tmp/tree")])
        assert safe_extract(io.BytesIO(stream), tmp_path).files == 1
        assert (tmp_path / "tree/sub/file").read_bytes() == BIG
        await write_tree(agent, "/tmp/copy", pieces(stream))
        assert (await execute(agent, "cmp", "/tmp/copy/tree/sub/file", "/tmp/tree/sub/file"))[0] == 0

    play(guest, scenario)


def test_shutdown_ends_the_guest(guest: Path) -> None:
    """The last test: the guest of this module is gone afterwards."""

    async def scenario(agent: GuestAgent) -> None:
        await agent.shutdown()
        deadline = time.monotonic() + 20
        with pytest.raises(AgentMissing):
            while time.monotonic() < deadline:
                await agent.ping(deadline_s=1)
                await asyncio.sleep(0.1)

    play(guest, scenario)
