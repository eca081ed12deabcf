"""Remove what an instance left: first its files, then its entry in the store."""

from __future__ import annotations

import shutil

from innkeeper.agent import layers
from innkeeper.agent.context import Context
from innkeeper.spec.instance import InstanceRecord, State


async def discard(ctx: Context, record: InstanceRecord) -> None:
    await ctx.publish(record, state=State.REMOVING)
    ctx.checkpoint("discard.begun")
    await ctx.spares.drop(record.uid)
    shutil.rmtree(ctx.paths.runtime(record.uid).directory, ignore_errors=True)
    directory = ctx.paths.instance(record.uid).directory
    if directory.exists():
        shutil.rmtree(directory)
    for snapshot in await ctx.repo.snapshots.of(record.name):
        if snapshot.uid == record.uid:
            shutil.rmtree(ctx.paths.snapshot(snapshot.id).directory, ignore_errors=True)
    if record.fork is not None:
        ctx.moments.release(record.fork.moment, record.uid)
    layers.sweep(ctx)
    ctx.checkpoint("discard.done")


async def forget(ctx: Context, record: InstanceRecord) -> None:
    ctx.checkpoint("forget.begun")
    await ctx.repo.remove_instance(record.name, record.uid)
    ctx.statuses.pop(record.uid, None)
    ctx.checkpoint("forget.done")
