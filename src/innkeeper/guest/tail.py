"""The host's end of a pump in the guest (see `wrapper`): one stream, read segment by segment."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from innkeeper.errors import Failed
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.channel import desc
from innkeeper.guest.wrapper import WINDOW

READ_BYTES: Final = 512 * 1024


class Tail:
    """Reads a stream's segments while they grow; remembers what it has read of each, so that the
    captured rest at the end continues exactly there."""

    def __init__(self, agent: GuestAgent, name: str) -> None:
        self._agent = agent
        self._name = name
        self._index = 0
        self._handle: int | None = None
        self._read_bytes = {0: 0}
        self._ack_handle: int | None = None
        self._acks_due = 0

    def handles(self) -> tuple[int | None, int | None]:
        return self._handle, self._ack_handle

    async def read(self, prefix: str) -> AsyncGenerator[bytes, None]:
        """What there is now, but at most the rest of one segment and the beginning of the next: a
        command that writes without end must not keep us from the other stream, and from its end."""
        if self._handle is None:
            self._handle = await try_open(self._agent, self._path(prefix, self._index), "r")
            if self._handle is None:
                return
        for _ in range(2):
            async for data in self._to_end():
                yield data
            if self._read_bytes[self._index] == 0:
                return  # a full segment is never empty: no need to look for the next
            await self._acknowledge(prefix)
            following = await try_open(self._agent, self._path(prefix, self._index + 1), "r")
            if following is None:
                return
            # The pump opens a segment after it has closed the one before: that is complete now.
            async for data in self._to_end():
                yield data
            await self._agent.file_close(self._handle)
            self._handle = following
            self._acks_due += 1
            self._index += 1
            self._read_bytes[self._index] = 0
            self._read_bytes.pop(self._index - WINDOW - 1, None)
            await self._acknowledge(prefix)

    def rest(self, captured: bytes) -> bytes:
        """What the pump's own output at the end adds to what was read: it starts with the number of
        its oldest segment. A wrapper that was killed has no such line, and nothing to add."""
        head, newline, data = captured.partition(b"\n")
        if not newline or not head.isdigit() or len(head) > 12:
            return captured if self._index == 0 and not self._read_bytes[0] else b""
        oldest = int(head)
        if oldest > self._index:
            raise Failed("output of the command was lost in the guest")
        return data[sum(size for index, size in self._read_bytes.items() if index >= oldest) :]

    async def _to_end(self) -> AsyncGenerator[bytes, None]:
        assert self._handle is not None
        while True:
            chunk = await self._agent.file_read(self._handle, READ_BYTES)
            if chunk.data:
                self._read_bytes[self._index] += len(chunk.data)
                yield chunk.data
            if chunk.eof or not chunk.data:
                return

    async def _acknowledge(self, prefix: str) -> None:
        # The pump makes its FIFO when it first has to wait, which is not before it filled WINDOW segments.
        if not self._acks_due or self._index < WINDOW - 1:
            return
        if self._ack_handle is None:
            self._ack_handle = await try_open(self._agent, f"{prefix}.{self._name}.a", "r+")
            if self._ack_handle is None:
                return
        await self._agent.file_write(self._ack_handle, b"\n" * self._acks_due)
        await self._agent.file_flush(self._ack_handle)
        self._acks_due = 0

    def _path(self, prefix: str, index: int) -> str:
        return f"{prefix}.{self._name}.{index}"


async def try_open(agent: GuestAgent, path: str, mode: str) -> int | None:
    """A handle, or None when there is no such file."""
    try:
        return await agent.file_open(path, mode)
    except Failed as error:
        if "No such file or directory" in desc(error):
            return None
        raise


async def read_small(agent: GuestAgent, path: str) -> bytes:
    """A file of a few bytes; empty when there is none."""
    handle = await try_open(agent, path, "r")
    if handle is None:
        return b""
    try:
        return (await agent.file_read(handle, 4096)).data
    finally:
        await agent.file_close(handle)
