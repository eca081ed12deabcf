"""A command under the wrapper script in a guest with a POSIX shell (see `wrapper`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Final

from innkeeper.errors import BadRequest, Failed
from innkeeper.guest import wrapper
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.feed import Feed
from innkeeper.guest.poll import Pace
from innkeeper.guest.session import STDERR, STDOUT, ExecSession, forgotten
from innkeeper.guest.tail import Tail, read_small, try_open

# A command that ends before this needs no file access; measured, `true` takes a tiny TCG guest 35 ms.
_ATTACH_AFTER_S: Final = 0.1
# Silence after which we look whether the command ended and only something it left behind holds its
# stdout: then the session ends, as with `incus exec`, instead of waiting for that daemon.
_QUIET_S: Final = 0.15
# A killed process is gone after one or two; a second in all.
_REAP_POLLS: Final = 40


class ShellSession(ExecSession):
    def __init__(self, agent: GuestAgent, pid: int, ident: str, *, stdin: bool) -> None:
        super().__init__(agent)
        self._pid = pid
        self._gone = False
        self._id = ident
        self._prefixes = tuple(one.format(id=ident) for one in wrapper.PREFIXES)
        self._feed = Feed(agent, self._prefixes, self._ended) if stdin else None
        self._tails = {STDOUT: Tail(agent, "o"), STDERR: Tail(agent, "e")}

    async def _chunks(self) -> AsyncGenerator[tuple[int, bytes], None]:
        pace, prefix = Pace(), ""
        attach_at = time.monotonic() + _ATTACH_AFTER_S
        look_at = 0.0
        while not self._ended.is_set():
            status = await self._agent.exec_status(self._pid)
            self._gone = status.exited
            if status.signal is not None:
                # A command that ended its process group took the plumbing along; what the pumps had
                # written is still there.
                if prefix := prefix or await self._find_prefix():
                    async for item in self._drain(prefix):
                        yield item
                self._finish(status.status)
                await self._close_handles()
                await self._run_script(wrapper.CLEAR)
                return
            if status.exited:
                for stream, captured in ((STDOUT, status.stdout), (STDERR, status.stderr)):
                    if rest := self._tails[stream].rest(captured):
                        yield stream, rest
                self._finish(status.status)
                await self._close_handles()
                return
            if not prefix and time.monotonic() >= attach_at:
                prefix = await self._find_prefix()
                look_at = time.monotonic() + _QUIET_S
            if prefix:
                async for item in self._tail_all(prefix):
                    yield item
                    pace.reset()
                    look_at = time.monotonic() + _QUIET_S
                if time.monotonic() >= look_at:
                    ended = await read_small(self._agent, f"{prefix}.s")
                    if ended.strip().isdigit():
                        async for item in self._drain(prefix):
                            yield item
                        await self._release(int(ended) & 0xFF)
                        return
                    look_at = time.monotonic() + _QUIET_S
            await pace.pause()

    async def _tail_all(self, prefix: str) -> AsyncGenerator[tuple[int, bytes], None]:
        for stream, tail in self._tails.items():
            async for data in tail.read(prefix):
                yield stream, data

    async def _drain(self, prefix: str) -> AsyncGenerator[tuple[int, bytes], None]:
        more = True
        while more:
            more = False
            async for item in self._tail_all(prefix):
                more = True
                yield item

    async def _find_prefix(self) -> str:
        """Which of the possible places the wrapper uses; empty while it has not come that far."""
        for prefix in self._prefixes:
            handle = await try_open(self._agent, f"{prefix}.o.0", "r")
            if handle is not None:
                await self._agent.file_close(handle)
                return prefix
        return ""

    async def _release(self, status: int) -> None:
        """The command ended, something it left behind keeps its stdout open: take our plumbing away."""
        async with self._finishing:
            if self._cancelled:
                return
            await self._run_script(wrapper.RELEASE)
            await self._reap()
            self._finish(status)
            await self._close_handles()

    # -- stdin -------------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        if self._feed is None:
            raise BadRequest("the command was started without stdin")
        await self._feed.write(data)

    async def close_stdin(self) -> None:
        if self._feed is not None:
            await self._feed.close()

    # -- the end -----------------------------------------------------------------------------------

    async def _kill(self) -> None:
        # Nobody may have read to its end: then its process id may be somebody else's by now.
        if await self._is_gone():
            await self._run_script(wrapper.CLEAR)
        else:
            await self._run_script(wrapper.CANCEL)
            await self._reap()
        self._ended.set()
        await self._close_handles()

    async def _is_gone(self) -> bool:
        try:
            self._gone = self._gone or (await self._agent.exec_status(self._pid)).exited
        except Failed as error:
            if not forgotten(error):
                raise
            self._gone = True
        return self._gone

    async def _run_script(self, script: str) -> None:
        pid = await self._agent.exec_start(
            "sh", ["-c", script, "sh", str(self._pid), self._id], capture=False
        )
        pace = Pace()
        while not (await self._agent.exec_status(pid)).exited:
            await pace.pause()

    async def _reap(self) -> None:
        """Have the agent forget the wrapper that was killed: it keeps an ended command until asked."""
        pace = Pace()
        with contextlib.suppress(Failed):  # somebody who reads its output asked first
            for _ in range(_REAP_POLLS):
                if (await self._agent.exec_status(self._pid)).exited:
                    return
                await pace.pause()

    async def _close_handles(self) -> None:
        for handle in (one for tail in self._tails.values() for one in tail.handles()):
            if handle is not None:
                with contextlib.suppress(Failed):  # a reset guest no longer knows it
                    await self._agent.file_close(handle)
        if self._feed is not None and await self._feed.finish():
            await self._run_script(wrapper.CLEAR)
