"""rm: remove an instance and everything that belongs to it."""

from __future__ import annotations

from innkeeper.api.verbs import change
from innkeeper.control.lifecycle import is_active
from innkeeper.errors import NotFound, WrongState
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, Power, StopMode
from innkeeper.store.repo import Repo

REMOVE_TIMEOUT_S = 120.0


async def rm(
    repo: Repo,
    name: str,
    *,
    force: bool = False,
    snapshots: bool = False,
    uid: str = "",
    timeout_s: float = REMOVE_TIMEOUT_S,
) -> int:
    """Remove it; the revision of its end. Raises WrongState when it runs, unless `force` (kill), or has
    snapshots, unless `snapshots`, and NotFound when `uid` is given and the name is another's by now."""
    kept = [] if snapshots else [one.name for one in await repo.snapshots.of(name)]

    def removed(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord | None:
        if uid and record.uid != uid:
            raise NotFound(f"{name} was removed meanwhile", hint="see what there is: inn list")
        refuse_running(record, status, force=force)
        if kept and not record.wanted.removed:
            raise WrongState(
                f"{name} has snapshots, which would go with it: {', '.join(kept[:5])}",
                hint=f"if they may go: inn rm --snapshots {name}",
                details={"snapshots": kept},
            )
        failed = status.failure is not None and status.failure.generation >= record.wanted.generation
        if record.wanted.removed and not failed:
            return None
        return change.raised(record, removed=True, power=Power.OFF, stop=StopMode.KILL)

    view = await repo.change_instance(name, removed)
    try:
        return await repo.settle_removed(name, view.record.wanted.generation, timeout_s, uid=view.record.uid)
    except NotFound:  # somebody else's rm was faster
        return view.revision


def refuse_running(record: InstanceRecord, status: InstanceStatus, *, force: bool = False) -> None:
    """What runs is removed only by force."""
    if is_active(record, status) and not force and not record.wanted.removed:
        raise WrongState(
            f"{record.name} is {status.state}: it is not removed while it runs",
            hint=f"inn stop {record.name} first, or inn rm --force {record.name}",
        )
