"""Routes of the inspector: what a running VM is like inside. None of them halts it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.responses import Response

from innkeeper.api import schema
from innkeeper.api.context import Ctx
from innkeeper.api.deps import Context
from innkeeper.api.respond import json_bytes
from innkeeper.spec.inspection import (
    AddressReport,
    CpuInspection,
    DiskInspection,
    MemoryMap,
    NetInspection,
)

router = APIRouter(prefix="/v1/instances/{name}/inspect", tags=["instances"])


async def _known(ctx: Context, name: str) -> None:
    """Raises NotFound, with close names."""
    await ctx.index.ready()
    ctx.index.view(name)


def _answer(found: BaseModel) -> Response:
    return json_bytes(found.model_dump_json().encode())


@router.get(
    "/memory", summary="A map of its memory: present, shared, swapped", responses=schema.answers(MemoryMap)
)
async def inspect_memory(
    ctx: Ctx, name: str, numa: Annotated[bool, Query(description="Also the NUMA node of each page.")] = False
) -> Response:
    await _known(ctx, name)
    return _answer(await ctx.deps.live.inspect_memory(name, numa=numa))


@router.get(
    "/memory/{address}",
    summary="One address: the walk of the guest's page tables, and the host's memory behind it",
    responses=schema.answers(AddressReport),
)
async def inspect_address(
    ctx: Ctx,
    name: str,
    address: str,
    physical: Annotated[bool, Query(description="It is guest-physical, not virtual.")] = False,
    cpu: Annotated[int, Query(ge=0, description="The vCPU whose page tables are walked.")] = 0,
) -> Response:
    await _known(ctx, name)
    return _answer(await ctx.deps.live.inspect_address(name, address, physical=physical, cpu=cpu))


@router.get("/cpu", summary="What its vCPUs are doing", responses=schema.answers(CpuInspection))
async def inspect_cpu(ctx: Ctx, name: str) -> Response:
    await _known(ctx, name)
    return _answer(await ctx.deps.live.inspect_cpu(name))


@router.get("/disk", summary="Its disks: images, counters, limits", responses=schema.answers(DiskInspection))
async def inspect_disk(ctx: Ctx, name: str) -> Response:
    await _known(ctx, name)
    return _answer(await ctx.deps.live.inspect_disk(name))


@router.get("/net", summary="Its network cards, from both sides", responses=schema.answers(NetInspection))
async def inspect_net(ctx: Ctx, name: str) -> Response:
    await _known(ctx, name)
    return _answer(await ctx.deps.live.inspect_net(name))
