"""Routes of images. Building and importing take time: they answer with a stream of progress."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from innkeeper.api import schema
from innkeeper.api.bodies import BuildBody, ImportBody
from innkeeper.api.context import Ctx
from innkeeper.api.deps import Context, Progress
from innkeeper.api.respond import Stream, error_body, json_of, sse, with_pulse
from innkeeper.api.verbs.image_rm import image_rm
from innkeeper.errors import InnkeeperError, NameTaken
from innkeeper.spec.architecture import DEBIAN_NAMES
from innkeeper.spec.image import ImageRecord
from innkeeper.telemetry.log import fields

log: Final = logging.getLogger("innkeeper.api.images")
router = APIRouter(prefix="/v1/images", tags=["images"])

HEARTBEAT_S: Final = 15.0
# A slow reader misses steps in between, never the end.
MAX_PROGRESS: Final = 64
PROGRESS = schema.streams(
    "text/event-stream",
    "Events `progress` {stage, fraction, detail}, and last `done` {image} or `error` {error}.",
)


@router.get("", summary="List all images", responses=schema.answers(schema.ImageList))
async def list_images(ctx: Ctx) -> Response:
    images = await ctx.deps.repo.images()
    return json_of({"images": [image.model_dump(mode="json") for image in images]})


@router.get("/{name}", summary="Show one image", responses=schema.answers(schema.ImageRecord))
async def show_image(ctx: Ctx, name: str) -> Response:
    return json_of((await ctx.deps.repo.image(name)).value.model_dump(mode="json"))


@router.delete("/{name}", summary="Remove an image", responses=schema.answers(schema.Removed))
async def remove_image(ctx: Ctx, name: str) -> Response:
    await image_rm(ctx.deps.repo, ctx.deps.images.remove, name)
    return json_of({"removed": name})


@router.post("/build", summary="Build an image by a recipe", responses=PROGRESS)
async def build_image(ctx: Ctx, body: BuildBody) -> Response:
    name = body.name or body.recipe + ("" if body.arch == "x86_64" else f"-{DEBIAN_NAMES[body.arch]}")

    async def work(progress: Progress) -> ImageRecord:
        return await ctx.deps.images.build(
            body.recipe, name, progress, packages=body.packages, size_bytes=body.size, arch=body.arch
        )

    return _progress_of(ctx, work)


@router.post("/import", summary="Import a file of the daemon's host", responses=PROGRESS)
async def import_image(ctx: Ctx, body: ImportBody) -> Response:
    if await ctx.deps.repo.find_image(body.name) is not None:
        raise NameTaken(
            f"There is an image named {body.name} already",
            hint=f"choose another name, or remove it: inn image rm {body.name}",
        )

    async def work(progress: Progress) -> ImageRecord:
        return await ctx.deps.images.import_(body.name, Path(body.path), progress, guest_os=body.os)

    return _progress_of(ctx, work)


def _progress_of(ctx: Context, work: Callable[[Progress], Awaitable[ImageRecord]]) -> Response:
    events = with_pulse(_events(work), b": still at it\n\n", HEARTBEAT_S)
    return Stream(events, media_type="text/event-stream", closing=ctx.deps.closing)


async def _events(work: Callable[[Progress], Awaitable[ImageRecord]]) -> AsyncIterator[bytes]:
    """The work's progress as events. Closing this cancels the work, which then leaves nothing."""
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def progress(stage: str, fraction: float | None, detail: str) -> None:
        if queue.qsize() < MAX_PROGRESS:
            queue.put_nowait(sse("progress", {"stage": stage, "fraction": fraction, "detail": detail}))

    async def working() -> ImageRecord:
        try:
            return await work(progress)
        finally:
            queue.put_nowait(None)

    task = asyncio.ensure_future(working())
    try:
        yield b": begun\n\n"
        while (event := await queue.get()) is not None:
            yield event
        yield await _last(task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _last(task: asyncio.Future[ImageRecord]) -> bytes:
    try:
        image = await task
    except InnkeeperError as error:
        return sse("error", error_body(error))
    except Exception as error:
        ident = secrets.token_hex(4)
        log.error("bug", exc_info=error, extra=fields(id=ident))
        bug = {"code": "bug", "message": "Innkeeper made a mistake of its own", "details": {"id": ident}}
        return sse("error", {"error": {**bug, "hint": f"see the daemon's log, id={ident}"}})
    return sse("done", {"image": image.model_dump(mode="json")})
