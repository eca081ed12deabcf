"""How the tests of guest commands run one against the fake agent, and look for what is left."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fakes.qga import FakeQga
from helpers import run
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.exec import ExecRequest, ExecSession, open_exec

Scenario = Callable[[FakeQga, GuestAgent], Coroutine[Any, Any, None]]
Result = tuple[int, bytes, bytes]


# How long a busy machine may take for what takes milliseconds.
PATIENCE_S = 60.0


def leftovers(fake: FakeQga) -> set[Path]:
    """Files of the commands that this fake ran; others may run commands on this host, too."""
    idents = {ident for script in fake.scripts for ident in re.findall(r"\b[0-9a-f]{32}\b", script)}
    return {
        path
        for folder in ("/run", "/tmp")
        for path in Path(folder).glob("innkeeper-exec*")
        if path.name.split(".")[1] in idents
    }


def play(tmp_path: Path, scenario: Scenario, *, programs: dict[str, str] | None = None) -> None:
    """Run a scenario; afterwards neither handles, children nor files of it may be left in the guest."""

    async def whole() -> None:
        async with FakeQga(tmp_path / "qga.sock", programs=programs) as fake:
            agent = GuestAgent(fake.socket_path)
            try:
                await scenario(fake, agent)
            finally:
                await agent.close()
            assert fake.open_handles == 0
            assert fake.known_children == 0
        deadline = time.monotonic() + PATIENCE_S
        while leftovers(fake) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)  # the wrapper removes its files after its end
        assert not leftovers(fake)

    run(whole())


async def finish(session: ExecSession, stdin: bytes | None = None) -> Result:
    async def feed() -> None:
        if stdin is not None:
            await session.write(stdin)
            await session.close_stdin()

    feeding = asyncio.create_task(feed())
    out = {1: bytearray(), 2: bytearray()}
    async for stream, data in session:
        out[stream] += data
    await feeding
    return await session.wait(), bytes(out[1]), bytes(out[2])


async def execute(agent: GuestAgent, *argv: str, stdin: bytes | None = None, **options: Any) -> Result:
    session = await open_exec(agent, ExecRequest(argv, stdin=stdin is not None, **options))
    return await finish(session, stdin)


def result_of(tmp_path: Path, *argv: str, **options: Any) -> Result:
    results = []

    async def scenario(_: FakeQga, agent: GuestAgent) -> None:
        results.append(await execute(agent, *argv, **options))

    play(tmp_path, scenario)
    return results[0]


async def ended(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z"):
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        await asyncio.sleep(0.02)
    return False
