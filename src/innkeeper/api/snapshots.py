"""Routes of snapshots, and of save and restore."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from innkeeper.api import schema
from innkeeper.api.bodies import RestoreBody, SaveBody, SnapshotBody
from innkeeper.api.context import Ctx, answer, told_with_serial
from innkeeper.api.respond import json_of
from innkeeper.api.verbs.save import restore, save
from innkeeper.api.verbs.snapshot_create import SnapshotOptions, snapshot_create
from innkeeper.api.verbs.snapshot_restore import RestoreOptions, snapshot_restore
from innkeeper.api.verbs.snapshot_rm import snapshot_rm
from innkeeper.spec.snapshot import SnapshotRecord

router = APIRouter(prefix="/v1/instances/{name}", tags=["snapshots"])
INSTANCE = schema.answers(schema.InstanceFull)
SNAPSHOT = schema.answers(schema.SnapshotRecord)
ONE = "/snapshots/{snapshot}"


@router.get("/snapshots", summary="List its snapshots", responses=schema.answers(schema.SnapshotList))
async def list_snapshots(ctx: Ctx, name: str) -> Response:
    view = await ctx.deps.repo.view(name)
    found = await ctx.deps.repo.snapshots.of(name)
    return json_of({"snapshots": [_shown(one) for one in found], "current": view.status.snapshot})


@router.post("/snapshots", summary="Take a snapshot", responses=SNAPSHOT)
async def create_snapshot(ctx: Ctx, name: str, body: SnapshotBody | None = None) -> Response:
    body = body or SnapshotBody()
    options = SnapshotOptions(
        name=body.name or "",
        disks_only=body.disks_only,
        compress=body.compress,
        timeout_s=body.timeout_s,
    )
    record, revision = await snapshot_create(ctx.deps.repo, ctx.deps.clock, name, options)
    await ctx.index.reached(revision)
    return json_of(_shown(record))


@router.get(ONE, summary="Show a snapshot", responses=SNAPSHOT)
async def show_snapshot(ctx: Ctx, name: str, snapshot: str) -> Response:
    await ctx.deps.repo.instance(name)
    return json_of(_shown(await ctx.deps.repo.snapshots.get(name, snapshot)))


@router.delete(ONE, summary="Remove a snapshot", responses=schema.answers(schema.Removed))
async def remove_snapshot(ctx: Ctx, name: str, snapshot: str) -> Response:
    await ctx.index.reached(await snapshot_rm(ctx.deps.repo, name, snapshot))
    return json_of({"removed": snapshot})


@router.post(ONE + "/restore", summary="Go back to it, or make a new instance from it", responses=INSTANCE)
async def restore_snapshot(ctx: Ctx, name: str, snapshot: str, body: RestoreBody | None = None) -> Response:
    options = _options(body or RestoreBody())
    deps = ctx.deps
    verb = snapshot_restore(deps.repo, ctx.admission, deps.clock, name, snapshot, options)
    return await answer(ctx, await told_with_serial(ctx, options.new_name or name, verb))


@router.post("/save", summary="Stop it with its state kept on disk", responses=INSTANCE)
async def save_instance(ctx: Ctx, name: str, body: SaveBody | None = None) -> Response:
    body = body or SaveBody()
    verb = save(ctx.deps.repo, ctx.deps.clock, name, compress=body.compress, timeout_s=body.timeout_s)
    return await answer(ctx, await verb)


@router.post("/restore", summary="Let it run on from where it was saved", responses=INSTANCE)
async def restore_instance(ctx: Ctx, name: str, body: RestoreBody | None = None) -> Response:
    verb = restore(ctx.deps.repo, ctx.admission, ctx.deps.clock, name, _options(body or RestoreBody()))
    return await answer(ctx, await told_with_serial(ctx, name, verb))


def _options(body: RestoreBody) -> RestoreOptions:
    return RestoreOptions(
        new_name=body.new_name or "", ssh_keys=body.ssh_keys, until=body.wait, timeout_s=body.timeout_s
    )


def _shown(record: SnapshotRecord) -> dict[str, Any]:
    return record.model_dump(mode="json")
