"""Servers without a network: call the application as uvicorn does, with requests that may never end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import FastAPI


class Streaming:
    """Calls the application as a server does, with a body that may never end."""

    def __init__(
        self, app: FastAPI, path: str, *, method: str = "GET", body: Any = None, headers: Any = ()
    ) -> None:
        route, _, query = path.partition("?")
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": "/v1" + route,
            "raw_path": ("/v1" + route).encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"content-type", b"application/json"), *headers],
            "server": ("inn", 80),
        }
        self.body = json.dumps(body).encode() if body is not None else b""
        self.chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.status = 0
        self._asked = False
        self._app = app

    async def __aenter__(self) -> Streaming:
        self.task = asyncio.create_task(self._app(self.scope, self._receive, self._send))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gone.set()
        async with asyncio.timeout(5):
            await self.task

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if message.get("body"):
            self.chunks.put_nowait(message["body"])
        if not message.get("more_body"):
            self.chunks.put_nowait(None)

    async def next(self) -> bytes | None:
        async with asyncio.timeout(5):
            return await self.chunks.get()

    async def events(self) -> list[dict[str, Any]]:
        """The events of the next chunk, comments left out."""
        chunk = await self.next()
        assert chunk is not None
        found = []
        for block in chunk.decode().split("\n\n"):
            fields = dict(
                line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":")
            )
            if fields:
                found.append({**fields, "data": json.loads(fields["data"])})
        return found


class Socket:
    """A WebSocket client: what the application sends comes out of `next`, its close code last."""

    def __init__(self, app: FastAPI, path: str) -> None:
        self._scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": "/v1" + path,
            "raw_path": ("/v1" + path).encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "subprotocols": [],
            "server": ("inn", 80),
        }
        self._app = app
        self._in: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._out: asyncio.Queue[bytes | str | int] = asyncio.Queue()

    async def __aenter__(self) -> Socket:
        self._in.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.create_task(self._app(self._scope, self._in.get, self._send))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._in.put_nowait({"type": "websocket.disconnect", "code": 1005})
        async with asyncio.timeout(5):
            await self.task

    async def _send(self, message: Any) -> None:
        if message["type"] == "websocket.send":
            data = message.get("bytes")
            self._out.put_nowait(message["text"] if data is None else data)
        elif message["type"] == "websocket.close":
            self._out.put_nowait(message["code"])

    async def send(self, frame: bytes | str) -> None:
        kind = "text" if isinstance(frame, str) else "bytes"
        self._in.put_nowait({"type": "websocket.receive", kind: frame})

    async def next(self) -> bytes | str | int:
        async with asyncio.timeout(5):
            return await self._out.get()

    async def json(self) -> Any:
        """The next text frame."""
        while not isinstance(frame := await self.next(), str):
            assert isinstance(frame, bytes), frame
        return json.loads(frame)
