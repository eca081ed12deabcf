"""The outermost layer: no body without a limit, no exception without an answer, no traceback to a user."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from innkeeper.api.respond import error_response, json_of
from innkeeper.errors import BadRequest
from innkeeper.telemetry.log import fields

log: Final = logging.getLogger("innkeeper.api")

# A record is at most 1 MiB; escapes may double it.
MAX_BODY_BYTES: Final = 2 << 20
BODY_DEADLINE_S: Final = 30.0
# Bodies of these are streamed to where they belong, with backpressure, and may have any length.
_STREAMED: Final = re.compile(r"/v1/instances/[^/]+/files")


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            if not _STREAMED.fullmatch(scope["path"]):
                receive = await _bounded(scope, receive)
            await self._app(scope, receive, sending)
        except ClientDisconnect:
            return
        except BadRequest as error:
            await error_response(error)(scope, receive, send)
        except Exception as error:
            ident = secrets.token_hex(4)
            log.error(
                "bug",
                exc_info=error,
                extra=fields(id=ident, method=scope["method"], path=scope["path"]),
            )
            if not started:
                await _bug(ident)(scope, receive, send)
            # Otherwise the server sees a response without an end and drops the connection, which
            # is the only way left to tell the client.


def _bug(ident: str) -> ASGIApp:
    return json_of(
        {
            "error": {
                "code": "bug",
                "message": "Innkeeper made a mistake of its own; nothing is known about the outcome",
                "hint": f"the daemon's log has the details under id={ident}; please report it",
                "details": {"id": ident},
            }
        },
        500,
    )


async def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Read the body, which must be small, and hand it on as one message."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > MAX_BODY_BYTES:
                    raise _too_large()
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise BadRequest("The request's body did not arrive in time") from None
    pending: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _too_large() -> BadRequest:
    return BadRequest(
        f"The request is too large: at most {MAX_BODY_BYTES} bytes",
        hint="is a file given where a spec belongs?",
    )
