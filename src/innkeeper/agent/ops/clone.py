"""Make a clone: whole copies of a VM's disks as they are at one moment, sharing no layer with it.

The moment is that of a fork, also of a VM that runs: it goes on while the frozen layers are copied, however
long that takes. The copy's disks are as after a power cut then.
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from typing import Final

from innkeeper.agent import chains, forkable
from innkeeper.agent.context import Context
from innkeeper.agent.launchplan import SEED_DISK
from innkeeper.agent.ops.copy import moment_of
from innkeeper.drivers.storage import files as storage
from innkeeper.engine.base import Layer
from innkeeper.guest.cloudinit import seed_iso
from innkeeper.paths import InstanceFiles
from innkeeper.spec.finding import refuse
from innkeeper.spec.instance import ForkOrigin, InstanceRecord, State

TELL_INTERVAL_S: Final = 0.5
Chain = tuple[Layer, ...]


async def create_clone(ctx: Context, record: InstanceRecord, origin: ForkOrigin) -> None:
    ctx.checkpoint("copy.begun")
    parent = ctx.records.get(origin.parent)
    if parent is not None and parent.uid == origin.parent_uid:
        refuse(forkable.of_copies(ctx, parent))  # before anything is paused
    taken = await moment_of(ctx, origin)
    await taken.wait_ready()
    files = ctx.paths.instance(record.uid)
    async with AsyncExitStack() as undo:
        shutil.rmtree(files.directory, ignore_errors=True)
        files.directory.mkdir(parents=True, mode=0o700)
        undo.callback(shutil.rmtree, files.directory, ignore_errors=True)
        if (taken.directory / "vars.fd").exists():
            shutil.copyfile(taken.directory / "vars.fd", files.uefi_vars)
        # While they are copied the layers are ours, too: the VM itself may be removed meanwhile.
        chains.write(files, taken.disks)
        ctx.moments.release(origin.moment, record.uid)
        disks = await _copied(ctx, record, files, taken.disks)
        if SEED_DISK in disks:
            seed = seed_iso(hostname=record.name, instance_id=record.uid, user_data=record.spec.user_data)
            files.seed.write_bytes(seed)
            disks[SEED_DISK] = (Layer(files.seed, "raw"),)
        chains.write(files, disks)
        await ctx.publish(record, durable=True, created=True, state=State.STOPPED, progress=None)
        undo.pop_all()
    ctx.checkpoint("copy.made")


async def _copied(
    ctx: Context, record: InstanceRecord, files: InstanceFiles, disks: dict[str, Chain]
) -> dict[str, Chain]:
    """The disks with those that are to be copied copied; how far that is shows in the status."""
    copied = forkable.to_copy(ctx.paths, record.uid)
    sizes = {name: max(1, storage.chain_bytes(chain)) for name, chain in copied.items()}
    share = [0.0]
    telling = asyncio.create_task(_tell(ctx, record, share))
    result, before = dict(disks), 0
    try:
        for name, chain in copied.items():

            def progress(percent: float, before: int = before, size: int = sizes[name]) -> None:
                share[0] = (before + size * percent / 100) / sum(sizes.values())

            path = files.disk(name)
            await storage.copy_chain(ctx.runner, chain, path, progress)
            result[name] = (Layer(path, "qcow2"),)
            before += sizes[name]
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
    return result


async def _tell(ctx: Context, record: InstanceRecord, share: list[float]) -> None:
    while True:
        await ctx.publish(record, progress=round(share[0], 2))
        await ctx.clock.sleep(TELL_INTERVAL_S)
