"""Every change of the store as server-sent events, resumable."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from innkeeper.api import schema
from innkeeper.api.context import Ctx
from innkeeper.api.respond import Stream, error_body, sse, with_pulse
from innkeeper.errors import BadRequest, Compacted, StoreError
from innkeeper.store.kv import Event, Store

router = APIRouter(prefix="/v1", tags=["daemon"])

HEARTBEAT_S: Final = 15.0


@router.get(
    "/events",
    summary="Watch every change",
    responses=schema.streams(
        "text/event-stream",
        "Events `change` {revision, kind, key, value} with revisions as ids; `compacted` {revision} when "
        "the start is no longer known (list again, and watch from there); `error` {error} at the end.",
    ),
)
async def events(
    ctx: Ctx,
    from_: Annotated[int, Query(alias="from", ge=0, description="First revision; 0: from now on.")] = 0,
    prefix: Annotated[str, Query(max_length=200, description="Only keys that start so.")] = "",
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    changes = _changes(ctx.deps.store, prefix, _start(from_, last_event_id))
    pulsed = with_pulse(changes, b": still here\n\n", HEARTBEAT_S)
    headers = {"Cache-Control": "no-store"}
    return Stream(pulsed, media_type="text/event-stream", closing=ctx.deps.closing, headers=headers)


def _start(from_: int, last_event_id: str | None) -> int:
    """A client that comes back goes on after the last event it has seen, whatever it first asked."""
    if last_event_id is None or not last_event_id:
        return from_
    if not last_event_id.isascii() or not last_event_id.isdigit():
        raise BadRequest(f"Not an id of an event: {last_event_id!r}", hint="ids are revisions")
    return int(last_event_id) + 1


async def _changes(store: Store, prefix: str, start: int) -> AsyncIterator[bytes]:
    try:
        async with store.watch(prefix, from_revision=start) as watch:
            # From here on nothing is missed; the client may begin to act.
            yield b": watching\n\n"
            async for batch in watch:
                yield _batch(batch)
    except Compacted:
        yield sse("compacted", {"revision": await store.revision()})
    except StoreError as error:
        yield sse("error", error_body(error))


def _batch(batch: list[Event]) -> bytes:
    """The events of one revision. Only the last has the id: a client cut off in the middle of them
    must get all of them again."""
    last = len(batch) - 1
    return b"".join(
        sse("change", _change(event), ident=str(event.kv.mod_revision) if place == last else "")
        for place, event in enumerate(batch)
    )


def _change(event: Event) -> dict[str, Any]:
    try:
        value = json.loads(event.kv.value) if event.kv.value else None
    except ValueError:
        value = None  # damaged; whoever reads the key itself is told so
    return {
        "revision": event.kv.mod_revision,
        "kind": event.kind.value,
        "key": event.kv.key,
        "value": value,
    }
