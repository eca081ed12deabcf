"""save and restore: the whole state of a VM to disk, and from there back."""

from __future__ import annotations

from dataclasses import replace

from innkeeper.api.admit import Admission
from innkeeper.api.verbs import change
from innkeeper.api.verbs.snapshot_create import SnapshotOptions, snapshot_create
from innkeeper.api.verbs.snapshot_restore import RestoreOptions, snapshot_restore
from innkeeper.api.verbs.snapshot_rm import going, snapshot_rm
from innkeeper.clock import Clock
from innkeeper.errors import NotFound, WrongState
from innkeeper.spec.instance import State
from innkeeper.spec.snapshot import SAVED, SnapshotState
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView


async def save(
    repo: Repo, clock: Clock, name: str, *, compress: bool = False, timeout_s: float | None = None
) -> InstanceView:
    """Stop it with its state kept. It stands still from the moment on, so nothing happens in it that would
    be lost; where the state cannot be kept, or the daemon ends meanwhile, it runs on."""
    view = await repo.view(name)
    if view.status.state not in (State.RUNNING, State.PAUSED):
        raise WrongState(f"{name} is {view.status.state}: there is nothing to save", hint=f"inn start {name}")
    if any(one.name == SAVED for one in await repo.snapshots.of(name)):
        await snapshot_rm(repo, name, SAVED)  # of an earlier save, after which it was started instead
    options = SnapshotOptions(SAVED, compress=compress, for_save=True, timeout_s=timeout_s)
    await snapshot_create(repo, clock, name, options)
    return await change.settled(repo, await repo.view(name), change.QUICK_TIMEOUT_S)


async def restore(
    repo: Repo, admission: Admission, clock: Clock, name: str, options: RestoreOptions
) -> InstanceView:
    """Let it run on from where it was saved, and drop what was saved."""
    view = await repo.view(name)
    if not any(
        one.name == SAVED and one.state is SnapshotState.READY for one in await repo.snapshots.of(name)
    ):
        raise NotFound(f"{name} has no saved state", hint=f"inn save {name} makes one; see inn snapshot list")
    if view.status.state in (State.RUNNING, State.PAUSED):
        raise WrongState(
            f"{name} is {view.status.state}: to throw that away and go back to what was saved is a restore "
            "of a snapshot",
            hint=f"inn snapshot restore {name} {SAVED}",
        )
    options = replace(options, of_save=True)
    view = await snapshot_restore(repo, admission, clock, name, SAVED, options)
    found = await repo.snapshots.get(name, SAVED)
    await repo.snapshots.change(found, going)  # nobody has to wait until its files are gone
    return view
