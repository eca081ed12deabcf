"""Commands in a guest without a POSIX shell: guest-exec as it is."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from typing import Final

from innkeeper.errors import BadRequest, Failed, Refused
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.channel import desc
from innkeeper.guest.poll import Pace
from innkeeper.guest.session import STDERR, STDOUT, ExecRequest, ExecSession

_STDIN_LIMIT_BYTES: Final = 8 * 1024 * 1024
_CANNOT_START: Final = re.compile(r"Failed to execute (child|helper)")


def cannot_start(error: Failed) -> bool:
    """Whether the agent says (in GLib's words, g_spawn_async) that the program is not there."""
    return _CANNOT_START.search(desc(error)) is not None


class PlainSession(ExecSession):
    """guest-exec as it is: starts when stdin is complete, tells all output at the end."""

    def __init__(self, agent: GuestAgent, request: ExecRequest) -> None:
        super().__init__(agent)
        self._request = request
        self._stdin = bytearray()
        self._stdin_closed = asyncio.Event()
        self._pid: int | None = None
        if not request.stdin:
            self._stdin_closed.set()

    async def write(self, data: bytes) -> None:
        if self._stdin_closed.is_set():
            raise BadRequest("the command was started without stdin, or its stdin is closed")
        if len(self._stdin) + len(data) > _STDIN_LIMIT_BYTES:
            raise Refused(
                "this guest takes at most 8 MiB of stdin", hint="copy a file into the guest instead"
            )
        self._stdin += data

    async def close_stdin(self) -> None:
        self._stdin_closed.set()

    async def _chunks(self) -> AsyncGenerator[tuple[int, bytes], None]:
        await self._stdin_closed.wait()
        argv, env = self._request.argv, self._request.env
        try:
            self._pid = await self._agent.exec_start(
                argv[0],
                argv[1:],
                env=[f"{key}={value}" for key, value in env.items()] if env else None,
                stdin=bytes(self._stdin) if self._request.stdin else None,
            )
        except Failed as error:
            if not cannot_start(error):
                raise
            yield STDERR, f"{argv[0]}: {desc(error)}\n".encode()
            self._finish(126 if "ermission" in desc(error) else 127)
            return
        pace = Pace()
        while not (status := await self._agent.exec_status(self._pid)).exited:
            if self._ended.is_set():
                return
            await pace.pause()
        for stream, data in ((STDOUT, status.stdout), (STDERR, status.stderr)):
            if data:
                yield stream, data
        if status.truncated:
            yield STDERR, b"(the guest agent kept only the first 16 MiB of the output)\n"
        self._finish(status.status)

    async def _kill(self) -> None:
        self._stdin_closed.set()
        if self._pid is not None:
            with contextlib.suppress(Failed):  # no taskkill: not Windows, and nothing else to try
                await self._agent.exec_start("taskkill", ["/F", "/T", "/PID", str(self._pid)], capture=False)
