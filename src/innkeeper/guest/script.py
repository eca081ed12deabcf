"""Run a short shell script in the guest through plain guest-exec: no streams, one answer."""

from __future__ import annotations

import asyncio
from typing import Final

from innkeeper.errors import Failed, Unsupported
from innkeeper.guest.agent import ExecStatus, GuestAgent
from innkeeper.guest.plain import cannot_start
from innkeeper.guest.poll import Pace

DEADLINE_S: Final = 30.0


async def run_script(agent: GuestAgent, script: str, *args: str) -> ExecStatus | None:
    """How it ended; None in a guest without a shell or with guest-exec disabled. Raises Failed when it
    does not end in time."""
    try:
        pid = await agent.exec_start("sh", ["-c", script, "sh", *args])
    except Failed as error:
        if cannot_start(error):
            return None
        raise
    except Unsupported:
        return None
    pace = Pace()
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (status := await agent.exec_status(pid)).exited:
                await pace.pause()
    except TimeoutError:
        raise Failed("the guest's shell does not answer", hint="a file system in it may hang") from None
    return status
