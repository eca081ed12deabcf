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
    ctx.cgroups.leave(record.uid)
    shutil.rmtree(ctx.paths.runtime(record.uid).directory, ignore_errors=True)
    directory = ctx.paths.instance(record.uid).directory
    if directory.exists():
        shutil.rmtree(directory)
    for snapshot in await ctx.repo.snapshots.of(record.name):
        if snapshot.uid == record.uid:
            shutil.rmtree(ctx.paths.snapshot(snapshot.id).directory, ignore_errors=True)
    _let_go(ctx, record)
    ctx.checkpoint("discard.done")


def _let_go(ctx: Context, record: InstanceRecord) -> None:
    """Of what it shares with others: the moment it was to be started from, layers of disks."""
    if record.fork is not None:
        ctx.moments.release(record.fork.moment, record.uid)
    layers.sweep(ctx)


async def forget(ctx: Context, record: InstanceRecord) -> None:
    ctx.checkpoint("forget.begun")
    status = ctx.statuses.get(record.uid)
    if status is None or not status.created:
        _let_go(ctx, record)  # a copy whose files could not be made has nothing to be discarded
    await ctx.repo.remove_instance(record.name, record.uid)
    ctx.statuses.pop(record.uid, None)
    ctx.checkpoint("forget.done")
