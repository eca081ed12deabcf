"""A command running in the guest, as its user sees it; how it is done is in `shell` and `plain`."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from innkeeper.errors import AgentMissing, BadRequest, Failed, GuestTimeout, InnkeeperError
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.channel import desc

STDOUT: Final = 1
STDERR: Final = 2
# Longer than a polite end takes (half a second), short enough for somebody who pressed ctrl-C.
CANCEL_DEADLINE_S: Final = 10.0


@dataclass(frozen=True)
class ExecRequest:
    """What to run: `argv` exactly as it is (no shell in between), `env` on top of the agent's own."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bool = False
    cwd: str | None = None

    def check(self) -> None:
        if not self.argv or not self.argv[0]:
            raise BadRequest("exec needs a command", hint="for example: -- uname -a")
        texts = [*self.argv, *self.env, *self.env.values(), self.cwd or ""]
        if any("\0" in text for text in texts):
            raise BadRequest("a command, its environment and its directory cannot contain NUL bytes")
        for key in self.env:
            if not key or "=" in key:
                raise BadRequest(f"{key!r} is no name for an environment variable")


class ExecSession(ABC):
    """A running command. Iterate it for `(stream, data)`; nothing is read ahead, so a slow reader slows
    the command. Who starts to iterate goes on to the end, or cancels. As a context manager it cancels
    what still runs when the block is left."""

    def __init__(self, agent: GuestAgent) -> None:
        self._agent = agent
        self._ended = asyncio.Event()
        self._status: int | None = None
        self._failure: InnkeeperError | None = None
        self._output: AsyncGenerator[tuple[int, bytes], None] | None = None
        self._finishing = asyncio.Lock()
        self._cancelled = False

    def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        if self._output is not None:
            raise RuntimeError("the output of a command can only be read once")
        self._output = self._guarded()
        return self._output

    @abstractmethod
    def _chunks(self) -> AsyncGenerator[tuple[int, bytes], None]:
        """The output; ends after `_finish`."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Give `data` to the command's stdin; waits while much of it is unread. Like a pipe whose
        reader is gone, a command that has ended takes nothing, but without an error."""

    @abstractmethod
    async def close_stdin(self) -> None: ...

    @abstractmethod
    async def _kill(self) -> None: ...

    async def wait(self) -> int:
        """The exit status, 128 + signal after a signal. Output nobody iterates over is thrown
        away. Raises Failed after `cancel`, and what broke the connection to the agent."""
        if self._output is None:
            async for _ in self:
                pass
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        if self._status is None or self._cancelled:
            raise Failed("the command was cancelled")
        return self._status

    async def cancel(self) -> None:
        """End the command and all it started in its session; no effect after its end. Raises
        GuestTimeout when the guest does not answer."""
        async with self._finishing:
            if self._status is not None or self._cancelled or isinstance(self._failure, AgentMissing):
                return
            self._cancelled = True
            try:
                async with asyncio.timeout(CANCEL_DEADLINE_S):
                    await self._kill()
            except AgentMissing:
                pass  # the VM ended, and the command with it
            except TimeoutError:
                raise GuestTimeout(
                    f"the guest did not end the command within {CANCEL_DEADLINE_S:g} s",
                    hint="it may still run there; the guest may be hung",
                ) from None
            finally:
                self._ended.set()

    async def __aenter__(self) -> ExecSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        # A loop left with `break` leaves its generator suspended: nothing waits for the agent then.
        await self.cancel()

    async def _guarded(self) -> AsyncGenerator[tuple[int, bytes], None]:
        try:
            async for item in self._chunks():
                yield item
        except InnkeeperError as error:
            if self._cancelled:
                return  # its files and process id are gone
            if forgotten(error):
                error = Failed(
                    "the guest no longer knows the command: it, or its agent, was restarted",
                    hint="run the command again",
                )
            self._failure = error
            self._ended.set()
            raise error from None

    def _finish(self, status: int) -> None:
        self._status = status
        self._ended.set()


def forgotten(error: InnkeeperError) -> bool:
    """Whether the agent does not know the process id: it restarted, or told the end already."""
    return "Invalid parameter 'pid'" in desc(error)
