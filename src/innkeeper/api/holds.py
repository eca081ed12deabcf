"""Holds: forks that go when the client that asked for them is gone, however it went.

A client opens a hold with a token of its choice and keeps the request open; forks made with the token
are removed when the request ends, but for those that were kept (verbs/keep.py) or removed by then. A
daemon that stops leaves them: the client lives on and removes them itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from innkeeper.api import schema
from innkeeper.api.bodies import HoldBody
from innkeeper.api.context import Ctx
from innkeeper.api.deps import Context
from innkeeper.api.respond import Stream
from innkeeper.api.verbs.rm import rm
from innkeeper.errors import Conflict, InnkeeperError

log: Final = logging.getLogger("innkeeper.api.holds")
router = APIRouter(prefix="/v1", tags=["instances"])
# The event loop keeps no strong reference to a task.
_ENDING: Final[set[asyncio.Future[None]]] = set()


@router.post(
    "/holds",
    summary="Hold forks: they are removed when this request ends",
    responses=schema.streams("text/plain", "`held` when it holds, and then nothing."),
)
async def hold(ctx: Ctx, body: HoldBody) -> Response:
    if body.token in ctx.holds:
        raise Conflict("This hold is open already", hint="choose another token")
    ctx.holds.add(body.token)
    return Stream(_held(ctx, body.token), media_type="text/plain", closing=ctx.deps.closing)


async def _held(ctx: Context, token: str) -> AsyncIterator[bytes]:
    try:
        yield b"held\n"
        await asyncio.Event().wait()
    finally:
        ctx.holds.discard(token)
        if not ctx.deps.closing.is_set():
            # The request is over, and with it whatever waits here.
            task = asyncio.ensure_future(end_hold(ctx, token))
            _ENDING.add(task)
            task.add_done_callback(_ENDING.discard)


def check_open(ctx: Context, token: str) -> None:
    if token and token not in ctx.holds:
        raise Conflict("The hold is not open", hint="the client that opened it may have ended")


async def end_hold(ctx: Context, token: str) -> None:
    """Remove what is still held by it."""
    repo = ctx.deps.repo
    held = [view for view in await repo.instances() if view.record.wanted.hold == token]
    removals = [rm(repo, view.name, force=True, uid=view.record.uid) for view in held]
    for view, outcome in zip(held, await asyncio.gather(*removals, return_exceptions=True), strict=True):
        if isinstance(outcome, InnkeeperError):
            log.warning("%s is left behind: %s", view.name, outcome)
