"""Serial consoles: QEMU serves one client, we share it among any number of viewers.

The hub connects when the first viewer comes and lets go with the last. A viewer that reads too
slowly loses output, said in its stream; it never holds up the guest or the others. What was said
while nobody looked is in the log QEMU itself keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from innkeeper.errors import WrongState

HISTORY_BYTES: Final = 4096
VIEWER_QUEUE_CHUNKS: Final = 256
CHUNK_BYTES: Final = 16384
CONNECT_DEADLINE_S: Final = 3.0
LOST: Final = b"\r\n[inn: some output was skipped]\r\n"


class Viewer:
    """One viewer's end; see agent.live.ConsoleTap."""

    def __init__(self, hub: ConsoleHub, history: bytes) -> None:
        self._hub = hub
        self._queue: deque[bytes] = deque([history] if history else [])
        self._wake = asyncio.Event()
        self._ended = False
        self._lost = False

    def feed(self, data: bytes) -> None:
        if len(self._queue) >= VIEWER_QUEUE_CHUNKS:
            self._queue.popleft()
            self._lost = True
        self._queue.append(data)
        self._wake.set()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            while self._queue:
                if self._lost:
                    self._lost = False
                    yield LOST
                yield self._queue.popleft()
            if self._ended:
                return
            self._wake.clear()
            await self._wake.wait()

    async def write(self, data: bytes) -> None:
        await self._hub.write(data)

    async def close(self) -> None:
        self.end()
        await self._hub.leave(self)


class ConsoleHub:
    def __init__(self, socket: Path, log: Path, on_empty: Callable[[], None]) -> None:
        self._socket, self._log, self._on_empty = socket, log, on_empty
        self._viewers: set[Viewer] = set()
        self._history = b""
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._next: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def join(self) -> Viewer:
        """A new viewer, which sees the last few KiB first. Raises WrongState when QEMU is gone."""
        async with self._connecting:
            if self._writer is None:
                await self._connect()
        viewer = Viewer(self, self._history)
        self._viewers.add(viewer)
        return viewer

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                reader, self._writer = await asyncio.open_unix_connection(str(self._socket))
        except (OSError, TimeoutError) as error:
            self._on_empty()
            raise WrongState("The console cannot be reached: QEMU is gone or hangs") from error
        self._history = _tail(self._log)
        self._reading = asyncio.create_task(self._read(reader))

    async def follow(self, socket: Path) -> None:
        """Another process may go on as the VM, and is connected to now: nothing it says is missed."""
        if self._writer is None:
            return
        with contextlib.suppress(OSError):
            following = await asyncio.open_unix_connection(str(socket))
            self._give_up_next()
            self._next = following

    async def _read(self, reader: asyncio.StreamReader) -> None:
        await self._read_to_end(reader)
        while self._next is not None:
            reader, self._writer = self._next
            self._next = None
            await self._read_to_end(reader)
        for viewer in self._viewers:
            viewer.end()
        self._disconnect()

    async def _read_to_end(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                self._history = (self._history + data)[-HISTORY_BYTES:]
                for viewer in self._viewers:
                    viewer.feed(data)

    async def write(self, data: bytes) -> None:
        if self._writer is None:
            return
        self._writer.write(data)
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def leave(self, viewer: Viewer) -> None:
        self._viewers.discard(viewer)
        if not self._viewers and self._reading is not None:
            self._reading.cancel()
            self._disconnect()

    def _give_up_next(self) -> None:
        if self._next is not None:
            self._next[1].close()
            self._next = None

    def _disconnect(self) -> None:
        self._give_up_next()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._on_empty()


def _tail(path: Path) -> bytes:
    with contextlib.suppress(OSError), path.open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - HISTORY_BYTES))
        return log.read(HISTORY_BYTES)
    return b""
