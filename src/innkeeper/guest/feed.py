"""The host's end of the feed in the guest (see `wrapper`): stdin, piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from innkeeper.errors import BadRequest, Failed
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.poll import Pace
from innkeeper.guest.tail import read_small, try_open

# Large enough that a piece's round trips (5 ms) weigh little, small enough for a guest's tmpfs.
PIECE_BYTES: Final = 512 * 1024
_WINDOW: Final = 2


class Feed:
    """Writes pieces and announces them. After `ended` nothing more is written."""

    def __init__(self, agent: GuestAgent, prefixes: Sequence[str], ended: asyncio.Event) -> None:
        self._agent = agent
        self._prefixes = prefixes
        self._ended = ended
        self._lock = asyncio.Lock()
        self._prefix = ""
        self._control: int | None = None
        self._pieces = 0
        self._open = True

    async def write(self, data: bytes) -> None:
        if not self._open:
            raise BadRequest("the command's stdin is closed already")
        view = memoryview(data)
        for start in range(0, len(view), PIECE_BYTES):
            async with self._lock:
                await self._piece(bytes(view[start : start + PIECE_BYTES]))

    async def close(self) -> None:
        """The command reads end of file."""
        if not self._open:
            return
        self._open = False
        async with self._lock:
            if await self._ready():
                await self._tell("e")

    async def finish(self) -> bool:
        """After `ended`: close the handle; whether a piece came too late to be removed in the guest."""
        assert self._ended.is_set()
        async with self._lock:
            if self._control is None:
                return False
            control, self._control = self._control, None
            with contextlib.suppress(Failed):  # a reset guest no longer knows it
                await self._agent.file_close(control)
            for number in range(max(0, self._pieces - _WINDOW - 1), self._pieces):
                if await self._exists(number):
                    return True
            return False

    async def _piece(self, piece: bytes) -> None:
        if not await self._ready() or not await self._consumed(self._pieces - _WINDOW):
            return
        number, self._pieces = self._pieces, self._pieces + 1
        handle = await self._agent.file_open(f"{self._prefix}.i.{number}", "w")
        try:
            await self._agent.file_write(handle, piece)
        finally:
            await self._agent.file_close(handle)
        await self._tell(str(number))

    async def _tell(self, word: str) -> None:
        # At most _WINDOW lines wait in the FIFO: it never is full.
        assert self._control is not None
        await self._agent.file_write(self._control, word.encode() + b"\n")
        await self._agent.file_flush(self._control)

    async def _ready(self) -> bool:
        """Open the control FIFO, once the wrapper has made it; False when the command ended."""
        pace = Pace()
        while self._control is None and not self._ended.is_set():
            for prefix in self._prefixes:
                # r+ never blocks on a FIFO, and never creates a file.
                self._control = await try_open(self._agent, f"{prefix}.c", "r+")
                if self._control is not None:
                    self._prefix = prefix
                    break
            else:
                await pace.pause()
        return not self._ended.is_set()

    async def _consumed(self, number: int) -> bool:
        """Wait until a piece has been removed; False when the command ended before that."""
        pace = Pace()
        while number >= 0 and not self._ended.is_set() and await self._exists(number):
            if await read_small(self._agent, f"{self._prefix}.s"):
                return False
            await pace.pause()
        return not self._ended.is_set()

    async def _exists(self, number: int) -> bool:
        handle = await try_open(self._agent, f"{self._prefix}.i.{number}", "r")
        if handle is None:
            return False
        await self._agent.file_close(handle)
        return True
