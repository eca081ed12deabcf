"""snapshot create: a moment of an instance, kept on disk."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from typing import Final

from innkeeper.api.verbs import change
from innkeeper.api.verbs.snapshot_rm import going
from innkeeper.clock import Clock
from innkeeper.control.lifecycle import is_active
from innkeeper.errors import BadRequest, GuestTimeout, InnkeeperError, WrongState
from innkeeper.spec.base import check_name
from innkeeper.spec.instance import State
from innkeeper.spec.snapshot import SAVED, SnapshotRecord
from innkeeper.store.repo import Repo

# Writing the memory takes as long as the disk takes.
SNAPSHOT_TIMEOUT_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class SnapshotOptions:
    """`name` empty: the next free number. `for_save`: of the verb save, under the name it keeps."""

    name: str = ""
    disks_only: bool = False
    compress: bool = False
    for_save: bool = False
    timeout_s: float | None = None


async def snapshot_create(
    repo: Repo, clock: Clock, name: str, options: SnapshotOptions
) -> tuple[SnapshotRecord, int]:
    """Take it, and wait until it is on disk; the record and its revision.

    With memory if the instance runs; of one that is off, and with `disks_only`, disks alone. Nothing is
    left of one that could not be taken, or not in time.
    """
    view = await repo.view(name)
    change.refuse_removed(view.record)
    change.refuse_template(view.record)
    live = is_active(view.record, view.status)
    if live and view.status.state not in (State.RUNNING, State.PAUSED):
        raise WrongState(
            f"{name} is {view.status.state}: no snapshot can be taken now", hint="try again in a moment"
        )
    if options.name == SAVED and not options.for_save:
        raise BadRequest(f"The name {SAVED!r} is that of inn save", hint="choose another name")
    chosen = options.name or await _next_name(repo, name)
    record = SnapshotRecord(
        name=check_name(chosen, "snapshot"),
        id=secrets.token_hex(8),
        instance=name,
        uid=view.record.uid,
        host=view.record.host,
        created_at=clock.time(),
        kind="memory" if live and not options.disks_only else "disks",
        compress=options.compress and live and not options.disks_only,
        saves=options.for_save,
        image_id=view.record.image_id,
        spec=view.record.spec,
    )
    await repo.snapshots.create(record)
    try:
        return await repo.snapshots.settle(record, options.timeout_s or SNAPSHOT_TIMEOUT_S)
    except GuestTimeout:
        with contextlib.suppress(InnkeeperError):
            await repo.snapshots.change(record, going)
        raise


async def _next_name(repo: Repo, name: str) -> str:
    taken = {one.name for one in await repo.snapshots.of(name)}
    return next(f"s{number}" for number in range(1, len(taken) + 2) if f"s{number}" not in taken)
