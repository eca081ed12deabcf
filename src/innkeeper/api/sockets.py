"""WebSockets of an instance: its serial console, and commands in its guest.

Both end with a text frame where there is something to say: ``{"exit_status": 0}``,
``{"ended": true}`` or ``{"error": {...}}``. A client that goes away ends the command it started: a
frame without data, sent now and then, finds out about one that vanished without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Final, NoReturn

from fastapi import APIRouter, WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from innkeeper.agent.live import STDOUT, ConsoleTap, ExecRequest, ExecSession
from innkeeper.api.bodies import ExecFrame
from innkeeper.api.context import Ctx
from innkeeper.api.render import dumps
from innkeeper.api.respond import error_body, first_of
from innkeeper.api.validation import as_bad_request
from innkeeper.errors import BadRequest, Failed, GuestTimeout, InnkeeperError
from innkeeper.telemetry.log import fields

log: Final = logging.getLogger("innkeeper.api.sockets")
router = APIRouter(prefix="/v1/instances/{name}")

KEEPALIVE_S: Final = 20.0
FIRST_FRAME_DEADLINE_S: Final = 10.0
CANCEL_DEADLINE_S: Final = 10.0
MAX_FRAME_BYTES: Final = 1 << 20
MAX_REQUEST_BYTES: Final = 256 << 10
# The event loop keeps no strong reference to a task.
_ENDING: Final[set[asyncio.Future[None]]] = set()


class _Socket:
    """One accepted socket: whole frames out, one at a time; bounded frames in."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._sending = asyncio.Lock()

    async def send(self, data: bytes) -> None:
        # Waits while the client does not read: that is the bound on what is kept for it.
        async with self._sending:
            await self._websocket.send_bytes(data)

    async def say(self, value: object) -> None:
        async with self._sending:
            await self._websocket.send_text(dumps(value).decode())

    async def receive(self) -> bytes | str:
        """The next frame. Raises WebSocketDisconnect at the end, BadRequest for too large a one."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005)
        frame: bytes | str = message["bytes"] if message.get("bytes") is not None else message["text"]
        if len(frame) > MAX_FRAME_BYTES:
            raise BadRequest(f"A frame is too large: at most {MAX_FRAME_BYTES} bytes")
        return frame

    async def keep_alive(self, nothing: bytes) -> NoReturn:
        """Send frames without data until that fails."""
        while True:
            await asyncio.sleep(KEEPALIVE_S)
            await self.send(nothing)

    async def end(self, last: object, code: int = 1000) -> None:
        """Say the last word and close, unless the client has gone."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(CANCEL_DEADLINE_S):
                await self.say(last)
                await self._websocket.close(code)


@contextlib.asynccontextmanager
async def _answered(websocket: WebSocket) -> AsyncIterator[_Socket]:
    """Accept, and tell the client whatever goes wrong."""
    await websocket.accept()
    socket = _Socket(websocket)
    try:
        yield socket
    except WebSocketDisconnect:
        pass
    except InnkeeperError as error:
        await socket.end(error_body(error), 1011)
    except Exception as error:
        ident = secrets.token_hex(4)
        log.error("bug", exc_info=error, extra=fields(id=ident, path=websocket.url.path))
        bug = {"code": "bug", "message": "Innkeeper made a mistake of its own", "details": {"id": ident}}
        await socket.end({"error": {**bug, "hint": f"see the daemon's log, id={ident}"}}, 1011)


async def _closing(event: asyncio.Event) -> NoReturn:
    await event.wait()
    raise Failed("The daemon is stopping", hint="the VM runs on; try again in a moment")


@router.websocket("/console")
async def console(websocket: WebSocket, ctx: Ctx, name: str) -> None:
    """Raw bytes of the serial console, both ways."""
    async with _answered(websocket) as socket:
        await ctx.index.ready()
        ctx.index.view(name)
        tap = await ctx.deps.live.console(name)
        try:
            await first_of(
                _console_out(socket, tap),
                _console_in(socket, tap),
                socket.keep_alive(b""),
                _closing(ctx.deps.closing),
            )
        finally:
            await tap.close()
        await socket.end({"ended": True})


async def _console_out(socket: _Socket, tap: ConsoleTap) -> None:
    async for data in tap:
        if data:
            await socket.send(data)


async def _console_in(socket: _Socket, tap: ConsoleTap) -> NoReturn:
    while True:
        frame = await socket.receive()
        data = frame.encode() if isinstance(frame, str) else frame
        if data:
            await tap.write(data)


@router.websocket("/exec")
async def exec_(websocket: WebSocket, ctx: Ctx, name: str) -> None:
    """A command in the guest: its streams, then its exit status."""
    async with _answered(websocket) as socket:
        request = await _request(socket)
        await ctx.index.ready()
        ctx.index.view(name)
        session = await ctx.deps.live.exec(name, request)
        try:
            status = await _run(socket, session, request, ctx.deps.closing)
        finally:
            await _cancelled(session, name)
        await socket.end({"exit_status": status})


async def _request(socket: _Socket) -> ExecRequest:
    """The first frame says what to run."""
    try:
        async with asyncio.timeout(FIRST_FRAME_DEADLINE_S):
            frame = await socket.receive()
    except TimeoutError:
        raise BadRequest("No first frame came that says what to run") from None
    if not isinstance(frame, str) or len(frame) > MAX_REQUEST_BYTES:
        raise BadRequest("The first frame is not a small text frame that says what to run")
    try:
        asked = ExecFrame.model_validate(json.loads(frame))
    except ValidationError as error:
        raise as_bad_request([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from None
    except (ValueError, RecursionError):
        raise BadRequest("The first frame is not JSON") from None
    return ExecRequest(asked.argv, asked.env, asked.stdin, asked.timeout_s)


async def _run(socket: _Socket, session: ExecSession, request: ExecRequest, closing: asyncio.Event) -> int:
    try:
        async with asyncio.timeout(request.timeout_s):
            return await first_of(
                _exec_out(socket, session),
                _exec_in(socket, session, request.stdin),
                socket.keep_alive(bytes([STDOUT])),
                _closing(closing),
            )
    except TimeoutError:
        raise GuestTimeout(
            f"The command did not end within {request.timeout_s:g} s", hint="it was ended in the guest"
        ) from None


async def _exec_out(socket: _Socket, session: ExecSession) -> int:
    async for stream, data in session.output():
        if data:
            await socket.send(bytes([stream]) + data)
    return await session.wait()


async def _exec_in(socket: _Socket, session: ExecSession, wanted: bool) -> NoReturn:
    """Stdin until its end; after that only the client's disconnection is waited for."""
    open_ = wanted
    while True:
        frame = await socket.receive()
        if not open_:
            continue
        if isinstance(frame, str):
            open_ = False
            await session.close_stdin()
        elif frame:
            await session.write(frame)


async def _cancelled(session: ExecSession, name: str) -> None:
    """End the session whatever happens: also when the end of the client or the daemon cancels us."""
    ending = asyncio.ensure_future(_end(session, name))
    _ENDING.add(ending)
    ending.add_done_callback(_ENDING.discard)
    await asyncio.shield(ending)


async def _end(session: ExecSession, name: str) -> None:
    try:
        await asyncio.wait_for(session.cancel(), CANCEL_DEADLINE_S)
    except (TimeoutError, InnkeeperError) as error:
        log.warning("a command may still run in the guest", extra=fields(name=name, error=str(error)))
