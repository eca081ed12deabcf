"""Routes of advice: what would pay, and applying it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from innkeeper.api import schema
from innkeeper.api.context import Ctx
from innkeeper.api.respond import json_bytes
from innkeeper.api.verbs.advise import Options, advise_all, advise_one
from innkeeper.control.advice import thresholds
from innkeeper.spec.advice import (
    LEAST_DATA_S,
    LEAST_TRIAL_S,
    LEAST_WINDOW_S,
    MOST_TRIAL_S,
    MOST_WINDOW_S,
    AdviceReport,
    InstanceAdvice,
    Kind,
)
from innkeeper.spec.base import Model

router = APIRouter(tags=["advice"])
INSTANCE = "/v1/instances/{name}/advice"

Window = Annotated[
    float, Query(ge=LEAST_WINDOW_S, le=MOST_WINDOW_S, description="How far back to look, in seconds.")
]
MinData = Annotated[
    float | None,
    Query(
        ge=LEAST_DATA_S,
        le=MOST_WINDOW_S,
        description="How much of that must be there, in seconds. Default: 1800, or half of a short window.",
    ),
]


class ApplyAdvice(Model):
    kind: Kind | None = Field(default=None, description="Advice of this kind only. Default: the most urgent.")
    window_s: float = Field(default=thresholds.WINDOW_S, ge=LEAST_WINDOW_S, le=MOST_WINDOW_S)
    min_data_s: float | None = Field(default=None, ge=LEAST_DATA_S, le=MOST_WINDOW_S)
    watch_s: float | None = Field(
        default=None,
        ge=LEAST_TRIAL_S,
        le=MOST_TRIAL_S,
        description="How long to watch it before it is kept or taken back. Default: as long as the window, "
        "ten minutes at most.",
    )


@router.get("/v1/advice", summary="What would pay, of all that run", responses=schema.answers(AdviceReport))
async def all_advice(
    ctx: Ctx, window_s: Window = thresholds.WINDOW_S, min_data_s: MinData = None
) -> Response:
    options = Options.of(window_s, min_data_s)
    found = await advise_all(ctx.sources, options)
    return json_bytes(found.model_dump_json().encode())


@router.get(
    INSTANCE, summary="What would pay, and what became of trials", responses=schema.answers(InstanceAdvice)
)
async def advice(
    ctx: Ctx,
    name: str,
    window_s: Window = thresholds.WINDOW_S,
    min_data_s: MinData = None,
) -> Response:
    options = Options.of(window_s, min_data_s)
    found = await advise_one(ctx.sources, name, options)
    return json_bytes(found.model_dump_json().encode())


@router.post(
    INSTANCE,
    summary="Apply the most urgent advice that can take effect now, and watch it",
    responses=schema.answers(InstanceAdvice),
)
async def apply_advice(ctx: Ctx, name: str, body: ApplyAdvice | None = None) -> Response:
    body = body or ApplyAdvice()
    options = Options.of(body.window_s, body.min_data_s)
    found = await ctx.trials.apply(name, options, kind=body.kind, watch_s=body.watch_s)
    return json_bytes(found.model_dump_json().encode())
