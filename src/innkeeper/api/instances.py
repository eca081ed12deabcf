"""Routes of instances: what there is, and the verbs."""

from __future__ import annotations

import contextlib
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from innkeeper.api import schema
from innkeeper.api.bodies import (
    ApplyBody,
    CloneBody,
    CreateBody,
    ForkBody,
    StartBody,
    TemplateBody,
    Timeout,
    VerbBody,
)
from innkeeper.api.context import Ctx, answer, told_with_serial
from innkeeper.api.holds import check_open, end_hold
from innkeeper.api.render import full
from innkeeper.api.respond import disconnected, first_of, json_bytes, json_of
from innkeeper.api.validation import as_bad_request
from innkeeper.api.verbs.apply import apply
from innkeeper.api.verbs.clone import CloneOptions, clone
from innkeeper.api.verbs.create import CreateOptions, create
from innkeeper.api.verbs.fork import ForkOptions, fork
from innkeeper.api.verbs.keep import keep
from innkeeper.api.verbs.kill import kill
from innkeeper.api.verbs.pause import pause
from innkeeper.api.verbs.restart import restart
from innkeeper.api.verbs.resume import resume
from innkeeper.api.verbs.rm import rm
from innkeeper.api.verbs.set import set_
from innkeeper.api.verbs.start import start
from innkeeper.api.verbs.stop import stop
from innkeeper.api.verbs.template import TemplateOptions, template
from innkeeper.api.verbs.wait import Awaited, wait
from innkeeper.errors import GuestTimeout, InnkeeperError, NotFound, StartFailed
from innkeeper.spec.instance import InstanceUpdate
from innkeeper.spec.qos import QosReport
from innkeeper.store.view import InstanceView

router = APIRouter(prefix="/v1/instances", tags=["instances"])
INSTANCE = schema.answers(schema.InstanceFull)
ONE = "/{name}"
# The removal is wanted from its first moment on; only the answer waits for it, and not for long.
REMOVE_AFTER_FAILURE_S = 3.0


@router.get("", summary="List all instances", responses=schema.answers(schema.InstanceList))
async def list_instances(ctx: Ctx) -> Response:
    await ctx.index.ready()
    return json_bytes(ctx.index.listing())


@router.post("", summary="Create an instance, and start it if asked", responses=INSTANCE)
async def create_instance(ctx: Ctx, body: CreateBody) -> Response:
    options = CreateOptions(
        start=body.start,
        keep_on_failure=body.keep_on_failure,
        remove_when_ended=body.remove_when_ended,
        hold=body.hold,
        template=body.template,
        cold=body.cold,
        until=body.wait,
        timeout_s=body.timeout_s,
    )
    deps = ctx.deps
    check_open(ctx, body.hold)
    verb = create(deps.repo, ctx.admission, deps.clock, body.name or "", body.spec, options)
    try:
        return await answer(ctx, await told_with_serial(ctx, body.name or "", verb))
    except (GuestTimeout, StartFailed) as error:
        # It was made and perhaps started, but never got where the caller wanted it: nothing stays.
        if body.keep_on_failure or "uid" not in error.details:
            raise
        with contextlib.suppress(InnkeeperError):
            await rm(
                deps.repo,
                error.details["name"],
                force=True,
                uid=error.details["uid"],
                timeout_s=REMOVE_AFTER_FAILURE_S,
            )
        raise type(error)(
            error.message,
            hint="nothing of it was kept; to look into it: inn create, then inn start and inn console",
            details=error.details,
        ) from None


@router.get(ONE, summary="Show one instance", responses=INSTANCE)
async def show_instance(ctx: Ctx, name: str) -> Response:
    await ctx.index.ready()
    return json_bytes(ctx.index.one(name))


@router.put(
    ONE,
    summary="Apply a spec: create the instance or change it",
    responses=schema.answers(schema.ApplyResult),
)
async def apply_instance(ctx: Ctx, name: str, body: ApplyBody, dry_run: bool = False) -> Response:
    deps = ctx.deps
    done = await apply(
        deps.repo, ctx.admission, deps.clock, name, body.spec, dry_run=dry_run, before=body.before
    )
    if done.view is not None:
        await ctx.index.reached(done.view.revision)
    return json_of(
        {
            "instance": full(done.view, deps.paths) if done.view else None,
            "created": done.created,
            "changed": list(done.changed),
            "needs_restart": list(done.needs_restart),
            "needs_resume": list(done.needs_resume),
            "reasons": done.reasons,
        }
    )


@router.patch(ONE, summary="Change what may change without a restart", responses=INSTANCE)
async def set_instance(ctx: Ctx, name: str, body: InstanceUpdate) -> Response:
    try:
        return await answer(ctx, await set_(ctx.deps.repo, name, body, ctx.admission))
    except ValidationError as error:  # of the whole that the change would make
        raise as_bad_request([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from None


@router.delete(ONE, summary="Remove an instance", responses=schema.answers(schema.Removed))
async def remove_instance(ctx: Ctx, name: str, force: bool = False, snapshots: bool = False) -> Response:
    await ctx.index.reached(await rm(ctx.deps.repo, name, force=force, snapshots=snapshots))
    return json_of({"removed": name})


@router.post(ONE + "/start", summary="Start it", responses=INSTANCE)
async def start_instance(ctx: Ctx, name: str, body: StartBody | None = None) -> Response:
    body = body or StartBody()
    verb = start(ctx.deps.repo, ctx.admission, name, until=body.wait, timeout_s=body.timeout_s)
    return await answer(ctx, await told_with_serial(ctx, name, verb))


@router.post(ONE + "/stop", summary="Ask its guest to shut down", responses=INSTANCE)
async def stop_instance(ctx: Ctx, name: str, body: VerbBody | None = None) -> Response:
    verb = stop(ctx.deps.repo, name, timeout_s=body.timeout_s if body else None)
    return await answer(ctx, await verb)


@router.post(ONE + "/restart", summary="Shut its guest down and start it anew", responses=INSTANCE)
async def restart_instance(ctx: Ctx, name: str, body: StartBody | None = None) -> Response:
    body = body or StartBody()
    verb = restart(ctx.deps.repo, ctx.admission, name, until=body.wait, timeout_s=body.timeout_s)
    return await answer(ctx, await told_with_serial(ctx, name, verb))


@router.post(
    ONE + "/fork", summary="Make copies of it as it is now", responses=schema.answers(schema.ForkResult)
)
async def fork_instance(ctx: Ctx, name: str, body: ForkBody | None = None) -> Response:
    body = body or ForkBody()
    options = ForkOptions(
        count=body.count,
        pattern=body.name,
        cpus=body.cpus,
        ssh_keys=body.ssh_keys,
        start=body.start,
        remove_when_ended=body.remove_when_ended,
        hold=body.hold,
        until=body.wait,
        timeout_s=body.timeout_s,
    )
    deps = ctx.deps
    check_open(ctx, body.hold)
    views = await fork(deps.repo, deps.clock, name, options, ctx.admission)
    if body.hold and body.hold not in ctx.holds:  # its client went away meanwhile
        await end_hold(ctx, body.hold)
        check_open(ctx, body.hold)
    pause_ms, told = 0.0, list(views)
    with contextlib.suppress(NotFound):  # removed meanwhile, which is nothing to its copies
        parent = await deps.repo.view(name)
        pause_ms = 0.0 if parent.status.template else parent.status.pause_ms
        told.append(parent)
    await ctx.index.reached(max(view.revision for view in told))
    return json_of(
        {"instances": [full(view, deps.paths) for view in views], "parent": name, "pause_ms": pause_ms}
    )


@router.post(ONE + "/template", summary="Freeze it, for others to start from", responses=INSTANCE)
async def template_instance(ctx: Ctx, name: str, body: TemplateBody | None = None) -> Response:
    body = body or TemplateBody()
    options = TemplateOptions(pool=body.pool, serves_image=body.serves_image, timeout_s=body.timeout_s)
    return await answer(ctx, await told_with_serial(ctx, name, template(ctx.deps.repo, name, options)))


@router.post(ONE + "/clone", summary="Make an independent copy of it", responses=INSTANCE)
async def clone_instance(ctx: Ctx, name: str, body: CloneBody) -> Response:
    options = CloneOptions(
        name=body.name,
        ssh_keys=body.ssh_keys,
        start=body.start,
        hold=body.hold,
        until=body.wait,
        timeout_s=body.timeout_s,
    )
    check_open(ctx, body.hold)
    verb = clone(ctx.deps.repo, ctx.admission, ctx.deps.clock, name, options)
    return await answer(ctx, await told_with_serial(ctx, body.name, verb))


@router.post(ONE + "/keep", summary="Do not remove it by itself any more", responses=INSTANCE)
async def keep_instance(ctx: Ctx, name: str) -> Response:
    return await answer(ctx, await keep(ctx.deps.repo, name))


@router.post(ONE + "/pause", summary="Let its vCPUs stand still", responses=INSTANCE)
async def pause_instance(ctx: Ctx, name: str, body: VerbBody | None = None) -> Response:
    return await answer(ctx, await pause(ctx.deps.repo, name, timeout_s=body.timeout_s if body else None))


@router.post(ONE + "/resume", summary="Let it run on", responses=INSTANCE)
async def resume_instance(ctx: Ctx, name: str, body: VerbBody | None = None) -> Response:
    return await answer(ctx, await resume(ctx.deps.repo, name, timeout_s=body.timeout_s if body else None))


@router.post(ONE + "/kill", summary="End its QEMU at once", responses=INSTANCE)
async def kill_instance(ctx: Ctx, name: str, body: VerbBody | None = None) -> Response:
    return await answer(ctx, await kill(ctx.deps.repo, name, timeout_s=body.timeout_s if body else None))


@router.get(ONE + "/wait", summary="Wait until it runs, is ready, or has stopped", responses=INSTANCE)
async def wait_instance(
    ctx: Ctx,
    request: Request,
    name: str,
    awaited: Annotated[Awaited, Query(alias="for")] = "ready",
    timeout_s: Annotated[Timeout | None, Query()] = None,
) -> Response:
    verb = told_with_serial(ctx, name, wait(ctx.deps.repo, name, awaited, timeout_s=timeout_s))

    async def gone() -> None:
        await disconnected(request.receive)

    view: InstanceView | None = await first_of(verb, gone())
    # Nobody reads what is sent to a client that has gone away; there is nothing to wait for either.
    return await answer(ctx, view) if view else Response(status_code=499)


@router.get(
    ONE + "/qos", summary="What it is promised of its host, and has", responses=schema.answers(QosReport)
)
async def qos_of_instance(ctx: Ctx, name: str) -> Response:
    await ctx.index.ready()
    ctx.index.view(name)
    return json_bytes(ctx.deps.live.qos(name).model_dump_json().encode())


@router.get(ONE + "/argv", summary="Its exact QEMU command line", responses=schema.answers(schema.Argv))
async def argv_of_instance(ctx: Ctx, name: str) -> Response:
    await ctx.index.ready()
    ctx.index.view(name)
    return json_of({"argv": await ctx.deps.live.argv(name)})
