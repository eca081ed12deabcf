"""snapshot rm: let go of a snapshot; the guest notices nothing."""

from __future__ import annotations

from innkeeper.spec.snapshot import SnapshotRecord, SnapshotState
from innkeeper.store.repo import Repo

REMOVE_TIMEOUT_S = 120.0


async def snapshot_rm(repo: Repo, name: str, snapshot: str, *, timeout_s: float | None = None) -> int:
    """Remove it, also one that is being taken; the revision of its end. Its children become its parent's."""
    await repo.instance(name)
    found = await repo.snapshots.get(name, snapshot)
    marked = await repo.snapshots.change(found, going)
    if marked is None:
        return await repo.store.revision()
    return await repo.snapshots.settle_gone(marked, timeout_s or REMOVE_TIMEOUT_S)


def going(record: SnapshotRecord) -> SnapshotRecord:
    return record.model_copy(update={"state": SnapshotState.REMOVING})
