"""Responses: prepared JSON, errors, and streams that end when either side does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from innkeeper.api.render import dumps
from innkeeper.errors import InnkeeperError

T = TypeVar("T")


def json_bytes(body: bytes, status: int = 200) -> Response:
    return Response(body, status_code=status, media_type="application/json")


def json_of(value: object, status: int = 200) -> Response:
    return json_bytes(dumps(value), status)


def error_body(error: InnkeeperError) -> dict[str, Any]:
    return {"error": error.to_dict()}


def error_response(error: InnkeeperError) -> Response:
    return json_of(error_body(error), error.http_status)


async def first_of(*coroutines: Coroutine[Any, Any, T]) -> T:
    """The result of whichever ends first; the others are cancelled and waited for."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # In the order given, so that a result wins over a disconnect of the same moment.
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Stream(Response):
    """Sends chunks as they come, until there are no more, the client goes away, or `closing` is set.

    The iterator is closed at once then, whatever it waits for: what it holds (a watch, a file in a
    guest) must not outlive the request.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        *,
        media_type: str,
        closing: asyncio.Event | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._chunks = chunks
        self._closing = closing
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        ends: list[Coroutine[Any, Any, object]] = [self._send(send), disconnected(receive)]
        if self._closing is not None:
            ends.append(_set(self._closing))
        try:
            await first_of(*ends)
        finally:
            await close(self._chunks)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send) -> None:
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def close(iterator: AsyncIterator[Any]) -> None:
    """Close an async generator; other iterators have nothing to close."""
    aclose: Any = getattr(iterator, "aclose", None)
    if aclose is not None:
        with contextlib.suppress(RuntimeError):  # it is closing already
            closing: Awaitable[None] = aclose()
            await closing


async def with_pulse(chunks: AsyncIterator[bytes], pulse: bytes, interval_s: float) -> AsyncIterator[bytes]:
    """`chunks`, and `pulse` whenever none came for `interval_s`: it shows both sides that the other
    is still there."""
    task: asyncio.Future[bytes] | None = None
    try:
        while True:
            task = task or asyncio.ensure_future(_next(chunks))
            done, _ = await asyncio.wait([task], timeout=interval_s)
            if not done:
                yield pulse
                continue
            try:
                chunk = task.result()
            except StopAsyncIteration:
                return
            finally:
                task = None
            yield chunk
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await close(chunks)


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    return await anext(chunks)


def sse(event: str, data: object, *, ident: str = "") -> bytes:
    """One server-sent event. JSON holds no raw line break, so it fits one data line."""
    head = f"id: {ident}\n" if ident else ""
    return f"{head}event: {event}\ndata: ".encode() + dumps(data) + b"\n\n"
