"""One QMP connection: commands with deadlines, events in a bounded queue that ends with the VM.

The wire is the QEMU project's own client (qemu.qmp). Two habits of it are turned off here: its
default listener, which keeps every event for ever, and listeners that fall silent when the
connection is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    QMPClient,
    QMPError,
    Runstate,
)
from qemu.qmp.message import Message

from innkeeper.errors import EngineError

COMMAND_DEADLINE_S: Final = 10.0
CONNECT_DEADLINE_S: Final = 10.0
# Ordinary VMs send a handful of events; one that floods us loses the oldest.
EVENT_QUEUE_LIMIT: Final = 256

_ignored = logging.getLogger("innkeeper.qmp.wire")
_ignored.setLevel(logging.CRITICAL)  # what matters is raised; the library also logs it


class Monitor:
    """A connected monitor. `events()` has one consumer; it ends when the connection does."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._listener = _BoundedListener()
        self._client = _Client(name, self._listener)
        self._watcher: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self.version = ""

    async def connect(self, socket_path: Path, deadline_s: float = CONNECT_DEADLINE_S) -> None:
        """Connect and negotiate. Raises EngineError when QEMU does not answer in time."""
        try:
            # A failing connect disconnects by itself: nobody else may do so meanwhile (see _shut).
            async with self._turn, asyncio.timeout(deadline_s):
                await self._client.connect(str(socket_path))
        except (TimeoutError, ConnectError, OSError) as error:
            await self._shut()
            late = isinstance(error, TimeoutError)
            reason = f"no answer within {deadline_s:g} s" if late else f"not reachable ({error})"
            raise EngineError(f"QEMU's monitor does not work: {reason}") from error
        greeting = self._client.greeting
        if greeting is not None:
            qemu = greeting._raw["QMP"]["version"]["qemu"]
            self.version = f"{qemu['major']}.{qemu['minor']}.{qemu['micro']}"
        self._watcher = asyncio.create_task(self._end_with_connection())

    async def _end_with_connection(self) -> None:
        while await self._client.runstate_changed() == Runstate.RUNNING:
            pass
        self._listener.close()
        await self._shut()

    async def _shut(self) -> None:
        """Bring the client back to idle; one caller at a time, or its own tasks are left hanging."""
        async with self._turn:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(asyncio.shield(self._client.disconnect()), 1.0)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        deadline_s: float = COMMAND_DEADLINE_S,
    ) -> Any:
        """Raises EngineError when QEMU refuses, does not answer in time, or is gone."""
        try:
            async with asyncio.timeout(deadline_s):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise EngineError(
                f"QEMU did not answer {command} within {deadline_s:g} s",
                details={"command": command, "timeout": True},
            ) from None
        except ExecuteError as error:
            raise EngineError(
                f"QEMU refused {command}: {error}",
                details={"command": command, "class": error.error_class},
            ) from error
        except (ExecInterruptedError, QMPError, OSError) as error:
            raise EngineError(
                f"The connection to QEMU was lost during {command}", details={"command": command}
            ) from error

    async def send_descriptor(self, fd: int) -> None:
        """Attach `fd` to the next command (add-fd, getfd)."""
        try:
            self._client.send_fd_scm(fd)
        except (QMPError, OSError) as error:
            raise EngineError("The connection to QEMU was lost") from error

    def events(self) -> AsyncIterator[dict[str, Any]]:
        return self._listener.messages()

    async def disconnect(self) -> None:
        self._listener.close()
        await self._shut()
        if self._watcher is not None:
            # It sees the change and ends; cancelled in the middle, it would leave the client's own tasks.
            await asyncio.wait({self._watcher}, timeout=1.0)


class _BoundedListener(EventListener):
    """An event listener that keeps no history, is bounded, and ends."""

    def __init__(self) -> None:
        super().__init__()
        self._bounded: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(EVENT_QUEUE_LIMIT)
        self._closed = False

    def accept(self, event: Message) -> bool:
        return not self._closed

    async def put(self, event: Message) -> None:
        if self.accept(event):
            self._push(dict(event))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._push(None)

    def _push(self, item: dict[str, Any] | None) -> None:
        if self._bounded.full():
            self._bounded.get_nowait()
        self._bounded.put_nowait(item)

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        while (item := await self._bounded.get()) is not None:
            yield item


class _Client(QMPClient):
    def __init__(self, name: str, listener: EventListener) -> None:
        super().__init__(name)
        self.logger = _ignored
        # The library will not let go of its default listener; ours takes its place.
        self._listeners = [listener]
        self.events = listener
