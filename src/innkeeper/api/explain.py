"""The route of explain: what a verb would say, without doing it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from innkeeper.api import schema
from innkeeper.api.context import Ctx
from innkeeper.api.respond import json_of
from innkeeper.api.verbs.explain import Verb, explain
from innkeeper.spec.cpu import MAX_VCPUS

router = APIRouter(prefix="/v1/instances/{name}", tags=["instances"])


@router.get(
    "/explain",
    summary="What would block a verb, without doing it",
    responses=schema.answers(schema.Explained),
)
async def explain_verb(
    ctx: Ctx,
    name: str,
    verb: Verb,
    count: Annotated[int, Query(ge=1, le=1000, description="Of fork: how many copies.")] = 1,
    cpus: Annotated[int | None, Query(ge=1, le=MAX_VCPUS, description="Of fork: vCPUs of each copy.")] = None,
) -> Response:
    deps = ctx.deps
    findings = await explain(deps.repo, ctx.admission, deps.live, verb, name, count, cpus)
    allowed = not any(one.verdict == "block" for one in findings)
    return json_of({"verb": verb, "allowed": allowed, "findings": [one.to_dict() for one in findings]})
