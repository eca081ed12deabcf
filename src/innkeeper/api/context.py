"""How the routes reach what they work on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Annotated, Final

from fastapi import Depends
from starlette.requests import HTTPConnection
from starlette.responses import Response

from innkeeper.api.deps import Context
from innkeeper.api.render import full
from innkeeper.api.respond import json_of
from innkeeper.errors import GuestTimeout, InnkeeperError, StartFailed
from innkeeper.store.view import InstanceView
from innkeeper.telemetry.tail import panic_words, printable_lines, read_tail

SERIAL_TAIL_BYTES: Final = 16384
SERIAL_LINES: Final = 5


async def context(connection: HTTPConnection) -> Context:
    # async, though it awaits nothing: FastAPI would hand a plain function to a thread, for 100 us
    found: Context = connection.app.state.context
    return found


Ctx = Annotated[Context, Depends(context)]


async def answer(ctx: Context, view: InstanceView) -> Response:
    """A verb's answer, given when the list shows it too."""
    await ctx.index.reached(view.revision)
    return json_of(full(view, ctx.deps.paths))


async def told_with_serial(ctx: Context, name: str, verb: Awaitable[InstanceView]) -> InstanceView:
    """A verb that waits for the guest: its error has the last lines the guest said."""
    try:
        return await verb
    except (GuestTimeout, StartFailed) as error:
        known = name or str(error.details.get("name", ""))
        lines = await _last_lines(ctx, known) if known and "console" not in error.details else []
        if not lines:
            raise
        details = {**error.details, "console": lines}
        raise type(error)(
            f"{error.message}; last on its console: {' | '.join(lines[-3:])}",
            hint=error.hint,
            details=details,
        ) from None


async def _last_lines(ctx: Context, name: str) -> list[str]:
    try:
        path = ctx.deps.live.logs(name, "console")
        data = await asyncio.to_thread(read_tail, path, SERIAL_TAIL_BYTES)
    except (InnkeeperError, OSError):
        return []
    # What a guest says is not to reach a terminal as control characters.
    text = data.decode(errors="replace").replace("\r", "\n")
    said = panic_words(text) or printable_lines(text)
    return [line[:200] for line in said][-SERIAL_LINES:]
