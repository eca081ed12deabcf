"""The connection to a guest agent: JSON lines over a unix socket, one command at a time.

The other end of the socket is QEMU's chardev of a virtio-serial port, behind it the QEMU guest agent
(docs/interop/qemu-ga-ref). The port knows no sessions: what an earlier client asked may be answered
to us, a guest that was reset or forked may leave half a line. `guest-sync-delimited` is the remedy: we
send 0xFF (the agent's parser drops what it had), and the agent answers 0xFF (never part of UTF-8)
and our random number; everything before that is stale and thrown away.

The guest is not trusted: a line has a limit, each answer is checked, texts from it are made printable.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

from innkeeper.errors import AgentMissing, Failed, GuestTimeout, InnkeeperError, Unsupported

# The longest honest answer is guest-exec-status with 16 MiB (the agent's own limit) of each of stdout
# and stderr, in base64: 43 MiB. What is longer comes from a guest that means harm.
LINE_LIMIT_BYTES: Final = 64 * 1024 * 1024
# Most commands only read a little state; a busy TCG guest answers them within a second.
DEADLINE_S: Final = 10.0
# Nearly all commands take milliseconds.
HOLD_PATIENCE_S: Final = 1.0
_READ_BYTES: Final = 256 * 1024
_DESC_LIMIT: Final = 500
_SYNC_MARK: Final = b"\xff"
_HINT_MISSING: Final = (
    "install and start qemu-guest-agent in the guest, wait until it has booted, and check that no other "
    "program holds the agent's socket"
)


class AgentChannel:
    """One client of an agent's socket; connects at the first command and again when needed."""

    def __init__(self, socket_path: Path | str, *, line_limit_bytes: int = LINE_LIMIT_BYTES) -> None:
        self.socket_path = Path(socket_path)
        self._line_limit_bytes = line_limit_bytes
        self._lock = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._buffer = bytearray()
        self._synced = False
        self._in_command = False  # the handshake is over: silence now concerns this command

    async def call(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, deadline_s: float = DEADLINE_S
    ) -> object:
        """Send one command, return what the agent answered.

        Raises AgentMissing when nobody answers, GuestTimeout when an agent that was there does not
        answer this command in `deadline_s` seconds (the time for our turn is not counted), Unsupported
        for a command it does not know or has disabled, Failed for an error or nonsense as an answer.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(deadline_s):
                    await self._ensure_synced()
                    # From here to the whole answer an interruption leaves the answer behind.
                    self._synced = False
                    await self._send(command, arguments)
                    answer = _parse(await self._read_line())
                    self._synced = True
            except TimeoutError:
                raise self._timeout(command, deadline_s) from None
            except (ConnectionError, EOFError, OSError) as error:
                self.drop()
                raise AgentMissing(
                    f"the guest agent's connection ended during {command}: {_reason(error)}",
                    hint=_HINT_MISSING,
                ) from error
            except InnkeeperError:
                self.drop()
                raise
        return _unwrap(command, answer)

    async def sync(self, *, deadline_s: float) -> None:
        """Wait until the agent answers a fresh handshake; raises AgentMissing."""
        async with self._lock:
            self._synced = False
            try:
                async with asyncio.timeout(deadline_s):
                    await self._ensure_synced()
            except TimeoutError:
                raise self._nobody(deadline_s) from None
            except (ConnectionError, EOFError, OSError) as error:
                self.drop()
                raise AgentMissing(
                    f"the guest agent's connection ended: {_reason(error)}", hint=_HINT_MISSING
                ) from error

    @contextlib.asynccontextmanager
    async def held(self, patience_s: float = HOLD_PATIENCE_S) -> AsyncIterator[None]:
        """While the VM moves to another process: no command is under way, and new ones wait. One that takes
        longer than `patience_s` is not waited for; the move cuts it."""
        try:
            await asyncio.wait_for(self._lock.acquire(), patience_s)
        except TimeoutError:
            yield
            return
        try:
            yield
        finally:
            self._lock.release()

    def drop(self) -> None:
        """Forget the connection at once; the next command makes a new one."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None
        self._buffer.clear()
        self._synced = False
        self._in_command = False

    async def close(self) -> None:
        writer = self._writer
        self.drop()
        if writer is not None:
            with contextlib.suppress(OSError):  # aborted by us: how it ended does not matter
                await writer.wait_closed()

    # -- the handshake -----------------------------------------------------------------------------

    async def _ensure_synced(self) -> None:
        if self._reader is not None and self._reader.at_eof():
            self.drop()  # QEMU went away between two commands: a new one may listen there now
        if self._reader is None:
            await self._connect()
        if self._buffer:
            self._synced = False  # an answer nobody asked for
        self._in_command = False
        if not self._synced:
            await self._handshake()
        self._in_command = True

    async def _connect(self) -> None:
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(self.socket_path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise AgentMissing(
                f"nothing listens on the guest agent's socket {self.socket_path}",
                hint="the VM is not running, or it has no guest-agent port",
            ) from error
        except OSError as error:
            raise AgentMissing(
                f"cannot connect to the guest agent's socket {self.socket_path}: {_reason(error)}",
                hint=_HINT_MISSING,
            ) from error
        self._buffer.clear()
        self._synced = False

    async def _handshake(self) -> None:
        ident = secrets.randbits(48)
        self._buffer.clear()
        await self._write(_SYNC_MARK + _encode("guest-sync-delimited", {"id": ident}))
        while True:
            await self._skip_to_mark()
            try:
                # A reset in the middle of a handshake leaves two marks in one line.
                answer = _parse((await self._read_line()).rpartition(_SYNC_MARK)[2])
            except Failed:
                continue  # stale or hostile: the right answer, or the deadline, ends this loop
            if answer.get("return") == ident:
                self._synced = True
                return

    async def _skip_to_mark(self) -> None:
        while (at := self._buffer.find(_SYNC_MARK)) < 0:
            self._buffer.clear()
            await self._fill()
        del self._buffer[: at + 1]

    # -- bytes -------------------------------------------------------------------------------------

    async def _send(self, command: str, arguments: Mapping[str, Any] | None) -> None:
        await self._write(_encode(command, arguments))

    async def _write(self, data: bytes) -> None:
        assert self._writer is not None
        self._writer.write(data)
        await self._writer.drain()

    async def _read_line(self) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > self._line_limit_bytes:
                self._buffer.clear()
                raise Failed(
                    f"the guest agent sent a line of more than {self._line_limit_bytes} bytes",
                    hint="the guest's agent is broken or hostile",
                )
            await self._fill()
        line = bytes(memoryview(self._buffer)[:end])
        del self._buffer[: end + 1]
        return line

    async def _fill(self) -> None:
        assert self._reader is not None
        chunk = await self._reader.read(_READ_BYTES)
        if not chunk:
            raise EOFError("closed by the VM")
        self._buffer += chunk

    # -- errors ------------------------------------------------------------------------------------

    def _timeout(self, command: str, deadline_s: float) -> InnkeeperError:
        if not self._in_command:
            return self._nobody(deadline_s)
        self._synced = False
        return GuestTimeout(
            f"the guest agent did not answer {command} within {deadline_s:g} s",
            hint="the guest may be busy or hung; try again",
        )

    def _nobody(self, deadline_s: float) -> AgentMissing:
        self._synced = False
        return AgentMissing(f"no guest agent answered within {deadline_s:g} s", hint=_HINT_MISSING)


def printable(text: str, limit: int = _DESC_LIMIT) -> str:
    """A text from the guest, safe to show on a terminal: no control characters, not too long."""
    return "".join(char if char.isprintable() else "?" for char in text[:limit])


def desc(error: InnkeeperError) -> str:
    """The agent's own words in an error that `call` raised; empty when it was not an answer."""
    return str(error.details.get("desc", ""))


def _encode(command: str, arguments: Mapping[str, Any] | None) -> bytes:
    request: dict[str, Any] = {"execute": command}
    if arguments:
        request["arguments"] = dict(arguments)
    return json.dumps(request).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        raise Failed(
            f"the guest agent sent invalid JSON: {printable(line[:80].decode(errors='replace'))!r}",
            hint="the guest's agent is broken or hostile",
        ) from None
    if not isinstance(answer, dict):
        raise Failed(
            "the guest agent sent something that is not an answer",
            hint="the guest's agent is broken or hostile",
        )
    return answer


def _unwrap(command: str, answer: dict[str, Any]) -> object:
    if "return" in answer:
        return answer["return"]
    error = answer.get("error")
    if not isinstance(error, dict):
        raise Failed(f"the guest agent answered {command} with neither a result nor an error")
    text = printable(str(error.get("desc", "no reason given")))
    details = {"command": command, "desc": text, "class": printable(str(error.get("class", "")))}
    if error.get("class") == "CommandNotFound":
        raise Unsupported(
            f"the guest agent does not offer {command}: {text}",
            hint="update qemu-guest-agent in the guest, or allow the command in its configuration",
            details=details,
        )
    raise Failed(f"the guest agent refused {command}: {text}", details=details)


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
