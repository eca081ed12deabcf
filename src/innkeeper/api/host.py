"""Routes of the daemon and its host."""

from __future__ import annotations

import os
from typing import Literal

from fastapi import APIRouter
from starlette.responses import Response

from innkeeper.api import schema
from innkeeper.api.bodies import HostUpdate
from innkeeper.api.context import Ctx
from innkeeper.api.deps import API_VERSION
from innkeeper.api.respond import json_of
from innkeeper.control import overcommit
from innkeeper.errors import Unsupported
from innkeeper.spec.cpumodel import CpuCatalogue
from innkeeper.units import parse_size

router = APIRouter(prefix="/v1")


@router.get(
    "/version", summary="Which daemon this is", tags=["daemon"], responses=schema.answers(schema.Version)
)
async def version(ctx: Ctx) -> Response:
    deps = ctx.deps
    return json_of(
        {
            "version": deps.version,
            "api": API_VERSION,
            "pid": os.getpid(),
            "state_dir": str(deps.paths.state),
            "mode": deps.mode,
            "started_at": deps.started_at,
            "host": deps.host,
        }
    )


@router.get(
    "/host",
    summary="What this host is and has",
    tags=["host"],
    responses=schema.answers(schema.HostView),
)
async def host(ctx: Ctx) -> Response:
    record = await ctx.deps.repo.host(ctx.deps.host)
    owed = overcommit.account(record, ctx.index.instances())
    return json_of(record.model_dump(mode="json") | {"overcommit": owed.model_dump(mode="json")})


@router.get(
    "/host/cpu-models",
    summary="Which CPU models and flags this host can give",
    tags=["host"],
    responses=schema.answers(CpuCatalogue),
)
async def cpu_models(
    ctx: Ctx, accelerator: Literal["kvm", "tcg"] | None = None, model: str | None = None
) -> Response:
    found = await ctx.deps.live.cpu_models(accelerator)
    if model is not None:
        found = found.model_copy(update={"models": (found.model(model),)})
    return json_of(found.model_dump(mode="json"))


@router.patch(
    "/host",
    summary="Reserve huge pages on this host, or change its settings",
    tags=["host"],
    responses=schema.answers(schema.HostView),
)
async def set_host(ctx: Ctx, body: HostUpdate) -> Response:
    deps = ctx.deps
    if body.hugepages and deps.hugepages is None:
        raise Unsupported("This daemon manages no huge pages")
    for size, pages in body.hugepages.items():
        assert deps.hugepages is not None
        await deps.hugepages.resize(parse_size(size), pages, body.node)
    if settings := body.settings():
        if deps.settings is None:
            raise Unsupported("This daemon keeps no settings of its host")
        await deps.settings.change(settings)
    if deps.look_again is not None:
        await deps.look_again()
    return await host(ctx)


@router.get("/doctor", summary="Examine this host", tags=["host"], responses=schema.answers(schema.Findings))
async def doctor(ctx: Ctx) -> Response:
    return json_of({"findings": [dict(finding) for finding in await ctx.deps.doctor()]})


@router.post(
    "/doctor/fix",
    summary="Repair what can be repaired, then examine this host",
    tags=["host"],
    responses=schema.answers(schema.Findings),
)
async def doctor_fix(ctx: Ctx) -> Response:
    return json_of({"findings": [dict(finding) for finding in await ctx.deps.doctor(fix=True)]})
