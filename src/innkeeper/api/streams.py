"""Routes that carry bytes of an instance: logs, files, screenshot. Console and exec: sockets.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from innkeeper.agent.live import LogSource
from innkeeper.api import schema
from innkeeper.api.context import Ctx
from innkeeper.api.deps import Context
from innkeeper.api.respond import Stream, json_of
from innkeeper.errors import BadRequest, StoreCorrupt
from innkeeper.spec.base import worded

router = APIRouter(prefix="/v1/instances/{name}", tags=["instances"])

CHUNK_BYTES: Final = 64 << 10
# A log grows without telling anybody; this is how late a follower sees it.
FOLLOW_INTERVAL_S: Final = 0.2
MAX_TAIL_BYTES: Final = 64 << 20
_MODE: Final = worded(r"^0?[0-7]{3,4}$", "write it in octal, such as 0644")


@router.get(
    "/logs",
    summary="Its serial output, or what QEMU wrote to stderr",
    responses=schema.streams("text/plain", "The log as it is: bytes in no particular encoding."),
)
async def logs(
    ctx: Ctx,
    name: str,
    source: LogSource = "console",
    tail_bytes: Annotated[int | None, Query(ge=0, le=MAX_TAIL_BYTES)] = None,
    follow: bool = False,
) -> Response:
    await ctx.index.ready()
    uid = ctx.index.view(name).record.uid
    chunks = _log(ctx, name, uid, ctx.deps.live.logs(name, source), tail_bytes, follow)
    return Stream(chunks, media_type="text/plain", closing=ctx.deps.closing)


async def _log(
    ctx: Context, name: str, uid: str, path: Path, tail_bytes: int | None, follow: bool
) -> AsyncIterator[bytes]:
    position = 0
    if tail_bytes is not None:
        size = await asyncio.to_thread(_size, path)
        position = max(0, size - tail_bytes)
    while True:
        chunk = await asyncio.to_thread(_read_at, path, position)
        if chunk:
            position += len(chunk)
            yield chunk
        elif not follow or not _is_there(ctx, name, uid):
            return
        else:
            await ctx.deps.clock.sleep(FOLLOW_INTERVAL_S)
            if await asyncio.to_thread(_size, path) < position:
                position = 0  # it was begun anew


def _is_there(ctx: Context, name: str, uid: str) -> bool:
    try:
        return ctx.index.has(name) and ctx.index.view(name).record.uid == uid
    except StoreCorrupt:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read_at(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return b""


@router.get(
    "/screenshot", summary="What its display shows", responses=schema.streams("image/png", "The picture.")
)
async def screenshot(ctx: Ctx, name: str) -> Response:
    await ctx.index.ready()
    ctx.index.view(name)
    return Response(await ctx.deps.live.screenshot(name), media_type="image/png")


@router.get(
    "/files",
    summary="Read a file in the guest",
    responses=schema.streams("application/octet-stream", "Its bytes. A connection cut short means failure."),
)
async def read_file(ctx: Ctx, name: str, path: Annotated[str, Query(min_length=1)]) -> Response:
    await ctx.index.ready()
    ctx.index.view(name)
    chunks = await ctx.deps.live.read_file(name, _absolute(path))
    return Stream(chunks, media_type="application/octet-stream", closing=ctx.deps.closing)


@router.put(
    "/files",
    summary="Write a file in the guest",
    responses=schema.answers(schema.Written),
    openapi_extra={
        "requestBody": {
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        }
    },
)
async def write_file(
    ctx: Ctx,
    request: Request,
    name: str,
    path: Annotated[str, Query(min_length=1)],
    mode: Annotated[str | None, Query(pattern=_MODE, description="Octal, such as 0644.")] = None,
) -> Response:
    await ctx.index.ready()
    ctx.index.view(name)
    octal = int(mode, 8) if mode else None
    count = await ctx.deps.live.write_file(name, _absolute(path), _nonempty(request), mode=octal)
    return json_of({"bytes": count})


async def _nonempty(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces; the end of a request is an empty one, which is nothing to write."""
    async for chunk in request.stream():
        if chunk:
            yield chunk


def _absolute(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise BadRequest(f"Not an absolute path in the guest: {path!r}", hint="give it from / on")
    return path
