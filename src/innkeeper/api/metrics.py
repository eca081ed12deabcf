"""What VMs and their host use: now, in the last day, and for Prometheus."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query
from starlette.responses import Response

from innkeeper.api import schema
from innkeeper.api.context import Ctx
from innkeeper.api.deps import Context
from innkeeper.api.prometheus import CONTENT_TYPE, exposition
from innkeeper.api.respond import json_bytes
from innkeeper.control import overcommit
from innkeeper.errors import BadRequest, NotFound
from innkeeper.spec.metrics import History
from innkeeper.units import parse_duration

router = APIRouter(tags=["metrics"])

# What is kept closely, and in what steps (agent/sampling/history.py).
CLOSELY_S: Final = 600.0
FINE_S: Final = 5.0
COARSE_S: Final = 60.0
LEAST_BACK_S: Final = FINE_S
MOST_BACK_S: Final = 86400.0

MaxAge = Annotated[
    float | None,
    Query(
        ge=0.2, le=3600, description="Read again if what is known is older. Whoever wants to watch asks so."
    ),
]
Since = Annotated[
    float | None, Query(ge=0, description="Seconds since the epoch; without it the last ten minutes.")
]
Resolution = Annotated[
    float | None,
    Query(ge=FINE_S, le=86400, description="Seconds per value: 5 of the last ten minutes, else 60 or more."),
]

Back = Annotated[
    str, Query(max_length=32, description="How long a time, up to now: 60s, 10m, 24h. At least 5s.")
]


@router.get(
    "/v1/metrics",
    summary="What all instances and the host use now",
    responses=schema.answers(schema.Metrics),
)
async def metrics(ctx: Ctx, max_age_s: MaxAge = None) -> Response:
    found = await ctx.deps.metering.metrics(max_age_s)
    found = overcommit.with_growth(found, ctx.index.instances())
    return json_bytes(found.model_dump_json().encode())


@router.get(
    "/v1/metrics/history",
    summary="What the host used in the last day",
    responses=schema.answers(schema.History),
)
async def host_history(ctx: Ctx, since: Since = None, resolution: Resolution = None) -> Response:
    return _history(ctx, "", since, resolution)


@router.get(
    "/v1/instances/{name}/metrics",
    summary="What an instance used in the last day",
    responses=schema.answers(schema.History),
)
async def history(ctx: Ctx, name: str, since: Since = None, resolution: Resolution = None) -> Response:
    await ctx.index.ready()
    ctx.index.view(name)
    return _history(ctx, name, since, resolution)


@router.get(
    "/v1/instances/{name}/why",
    summary="Why an instance is slow: what held it up, and who used what it lacked",
    responses=schema.answers(schema.Why),
)
async def why(ctx: Ctx, name: str, since: Back = "60s") -> Response:
    since_s = parse_duration(since)
    if not LEAST_BACK_S <= since_s <= MOST_BACK_S:
        raise BadRequest(f"Not a time that is known: {since}", hint="choose one from 5s to 24h")
    await ctx.index.ready()
    ctx.index.view(name)
    found = await ctx.deps.metering.why(name, since_s)
    return json_bytes(found.model_dump_json().encode())


def _history(ctx: Context, name: str, since: float | None, resolution: float | None) -> Response:
    now = ctx.deps.clock.time()
    begin = now - CLOSELY_S if since is None else since
    if resolution is None:
        resolution = FINE_S if begin >= now - CLOSELY_S else COARSE_S
    found: History = ctx.deps.metering.history(name, begin, resolution)
    return json_bytes(found.model_dump_json().encode())


@router.get(
    "/metrics",
    summary="For Prometheus",
    responses=schema.streams("text/plain", "The text format of Prometheus, version 0.0.4."),
)
async def for_prometheus(ctx: Ctx) -> Response:
    views = ctx.index.instances()
    found = overcommit.with_growth(await ctx.deps.metering.metrics(), views)
    try:
        record = await ctx.deps.repo.host(ctx.deps.host)
    except NotFound:  # its lease has run out: the daemon is about to write it again
        return Response(exposition(found), media_type=CONTENT_TYPE)
    text = exposition(found, overcommit.account(record, views), record.ksm)
    return Response(text, media_type=CONTENT_TYPE)
