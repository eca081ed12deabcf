"""Take a snapshot, and remove one.

It is a moment of the VM, taken as for a fork: the VM is handed over to a stand-in and runs on after some
20 ms, whatever its RAM. What was frozen is then written while the VM runs. The snapshot exists from the
one durable change of its record on; before that, nothing of it is worth anything.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

from innkeeper.agent import layers, saved
from innkeeper.agent.context import Context, Running
from innkeeper.agent.moments import WAIT_S, Taken
from innkeeper.drivers.storage import ramfile
from innkeeper.drivers.storage.files import require_free
from innkeeper.errors import Failed, WrongState
from innkeeper.spec.instance import InstanceRecord, Power, StopMode
from innkeeper.spec.snapshot import FileMark, SnapshotRecord, SnapshotState
from innkeeper.units import MiB

HOLDER: Final = "snapshot"
# Device state, plan and chains.
SMALL_FILES_BYTES: Final = 16 * MiB
PROGRESS_INTERVAL_S: Final = 0.25
NOT_FROZEN: Final = "crash-consistent: no agent in the guest could bring its file systems to rest"


async def take(ctx: Context, snapshot: SnapshotRecord) -> None:
    """From `taking` to `ready`. Raises what went wrong; nothing is left then."""
    begun = time.perf_counter()
    ctx.checkpoint("snapshot.begun")
    record, running = _instance(ctx, snapshot)
    memory = snapshot.kind == "memory"
    files = ctx.paths.snapshot(snapshot.id)
    needed = running.machine.ram_used_bytes if memory and running else 0
    require_free(ctx.paths.snapshots, SMALL_FILES_BYTES + needed)
    labels = saved.labels_of(running) if memory else None
    quiesce = not memory and running is not None
    ctx.moments.hold(snapshot.id, HOLDER, quiesce=quiesce, halt=record.uid if snapshot.saves else "")
    try:
        taken = await ctx.moments.of(record.uid, snapshot.id)
        await taken.wait_ready()
        if memory and taken.machine is None:
            raise Failed(f"{record.name} did not run any more when its snapshot was to be taken")
        ctx.checkpoint("snapshot.frozen")
        files.directory.mkdir(mode=0o700)
        await _both(
            _write_small(ctx, snapshot, taken), *([_write_ram(ctx, snapshot, taken)] if memory else [])
        )
        if quiesce:
            await asyncio.wait_for(taken.over.wait(), WAIT_S)  # with it, its file systems are thawed
        ctx.checkpoint("snapshot.written")
        marks = await asyncio.to_thread(saved.marks, files)
        changes: dict[str, Any] = {
            "pause_ms": taken.pause_ms,
            "ram_bytes": taken.plan.ram_bytes if memory and taken.plan else 0,
            "consistent": memory or not quiesce or taken.quiesced,
            "note": NOT_FROZEN if quiesce and not taken.quiesced else "",
        }
        if labels is not None:
            changes["labels"] = labels
        await _commit(ctx, record, snapshot, changes, marks, begun)
    except BaseException:
        shutil.rmtree(files.directory, ignore_errors=True)
        raise
    finally:
        ctx.moments.release(snapshot.id, HOLDER)
        layers.sweep(ctx)
    ctx.checkpoint("snapshot.done")


async def _both(*writing: Coroutine[Any, Any, None]) -> None:
    """All to their end, then the first error: what still writes would leave files where all was removed."""
    tasks = [asyncio.ensure_future(one) for one in writing]
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    for task in tasks:
        task.result()


def _instance(ctx: Context, snapshot: SnapshotRecord) -> tuple[InstanceRecord, Running | None]:
    record = ctx.records.get(snapshot.instance)
    if record is None or record.uid != snapshot.uid or record.wanted.removed:
        raise Failed(f"{snapshot.instance} is gone; there is nothing to take a snapshot of")
    running = ctx.running.get(record.uid)
    if snapshot.kind == "memory" and running is None:
        raise WrongState(
            f"{record.name} does not run: it has no memory to save", hint="take its disks: --disks-only"
        )
    return record, running


async def _write_small(ctx: Context, snapshot: SnapshotRecord, taken: Taken) -> None:
    files, memory = ctx.paths.snapshot(snapshot.id), snapshot.kind == "memory"
    await asyncio.to_thread(saved.write_small, files, taken, memory=memory)
    ctx.checkpoint("snapshot.small")


async def _write_ram(ctx: Context, snapshot: SnapshotRecord, taken: Taken) -> None:
    """In a thread; how far it is shows in the record."""
    assert taken.machine is not None
    parts = taken.machine.ram.parts
    pieces = list(saved.ram_files(ctx.paths.snapshot(snapshot.id), parts, compressed=snapshot.compress))
    total, seen, given_up = sum(ramfile.data_bytes(fd) for fd in parts.values()), 0, threading.Event()

    def write_all() -> None:
        before = 0
        for fd, path in pieces:

            def progress(done: int, before: int = before) -> None:
                nonlocal seen
                seen = before + done
                if given_up.is_set():
                    raise Failed("given up")

            ramfile.save(fd, path, compress=snapshot.compress, progress=progress)
            before += ramfile.data_bytes(fd)

    work = asyncio.ensure_future(asyncio.to_thread(write_all))
    try:
        while not (await asyncio.wait([work], timeout=PROGRESS_INTERVAL_S))[0]:
            far = {"written_bytes": seen, "total_bytes": total}
            await ctx.repo.snapshots.change(snapshot, partial(_updated, far), durable=False)
    finally:
        given_up.set()  # the thread still has the descriptor: wait for it
        await asyncio.wait([work])
    work.result()


def _updated(changes: dict[str, Any], now: SnapshotRecord) -> SnapshotRecord:
    return now.model_copy(update=changes)


async def _commit(
    ctx: Context,
    record: InstanceRecord,
    snapshot: SnapshotRecord,
    changes: dict[str, Any],
    marks: dict[str, FileMark],
    begun: float,
) -> None:
    """The one transaction that makes it a snapshot."""
    files = ctx.paths.snapshot(snapshot.id)
    parent = ctx.statuses[record.uid].snapshot
    known = {one.name for one in await ctx.repo.snapshots.of(record.name) if one.id != snapshot.id}
    total = ramfile_bytes(marks)
    changes |= {
        "state": SnapshotState.READY,
        "files": marks,
        "parent": parent if parent in known else "",
        "size_bytes": saved.size_on_disk(files),
        "total_bytes": total,
        "written_bytes": total,
        "took_ms": round((time.perf_counter() - begun) * 1000, 1),
    }

    def ready(now: SnapshotRecord) -> SnapshotRecord | None:
        return now.model_copy(update=changes) if now.state is SnapshotState.TAKING else None

    ctx.checkpoint("snapshot.commit")
    done = await ctx.repo.snapshots.change(snapshot, ready, instance=_off if snapshot.saves else None)
    if done is None or done.state is not SnapshotState.READY:
        raise Failed(f"Snapshot {snapshot.name} was removed while it was being taken")
    await ctx.publish(record, durable=True, snapshot=snapshot.name)


def _off(record: InstanceRecord) -> InstanceRecord:
    """Saved and off are one change: there is no instant at which both the saved and a running VM go on."""
    wanted = record.wanted
    update = {
        "generation": wanted.generation + 1,
        "power": Power.OFF,
        "stop": StopMode.KILL,
        "saved": True,
        "revert": None,
        "remove_if_start_fails": False,
    }
    return record.model_copy(update={"wanted": wanted.model_copy(update=update)})


def ramfile_bytes(marks: dict[str, FileMark]) -> int:
    return sum(mark.size_bytes for name, mark in marks.items() if name.startswith("ram"))


async def remove(ctx: Context, snapshot: SnapshotRecord) -> None:
    """References go, nothing is copied: no guest notices. Layers go when nobody else has them."""
    ctx.checkpoint("unsnapshot.begun")
    async with ctx.snapshot_lock(snapshot.id):
        await _remove(ctx, snapshot)
    ctx.snapshot_locks.pop(snapshot.id, None)
    ctx.checkpoint("unsnapshot.done")


async def _remove(ctx: Context, snapshot: SnapshotRecord) -> None:
    directory = ctx.paths.snapshot(snapshot.id).directory
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    record = ctx.records.get(snapshot.instance)
    if record is not None and ctx.statuses[record.uid].snapshot == snapshot.name:
        await ctx.publish(record, durable=True, snapshot=snapshot.parent)
    ctx.checkpoint("unsnapshot.files")
    await ctx.repo.snapshots.forget(snapshot)
    layers.sweep(ctx)
