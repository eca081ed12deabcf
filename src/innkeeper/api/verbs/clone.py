"""clone: an instance with whole copies of another's disks, which shares nothing with it."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from typing import Literal

from innkeeper.api.admit import Admission
from innkeeper.api.verbs import change
from innkeeper.api.verbs.fork import ForkOptions, record_of_copy
from innkeeper.api.verbs.rm import rm
from innkeeper.api.verbs.wait import wait
from innkeeper.clock import Clock
from innkeeper.control import forking
from innkeeper.errors import InnkeeperError
from innkeeper.spec.base import check_name
from innkeeper.spec.finding import refuse
from innkeeper.spec.instance import ForkOrigin, InstanceRecord
from innkeeper.store.repo import Repo
from innkeeper.store.settle import Deadline
from innkeeper.store.view import InstanceView

# A terabyte over a slow disk, as long as the copy itself may take (drivers/storage/files.py).
TIMEOUT_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class CloneOptions:
    name: str
    ssh_keys: bool = False
    start: bool = True
    hold: str = ""
    until: Literal["running", "ready"] = "running"
    timeout_s: float | None = None


async def clone(
    repo: Repo, admission: Admission, clock: Clock, name: str, options: CloneOptions
) -> InstanceView:
    """Clone it, as it is now: running or not, the clone boots. One that fails leaves nothing."""
    deadline = Deadline(TIMEOUT_S if options.timeout_s is None else options.timeout_s)
    parent = await repo.view(name)
    change.refuse_removed(parent.record)
    refuse(forking.state(parent.record, parent.status, boots=True))
    record = _record(parent.record, clock.time(), options)
    async with admission.turn(record.spec, host=record.host, to_run=options.start) as placement:
        (view,) = await repo.create_instances([record.model_copy(update={"nodes": placement.nodes})])
    try:
        view = await change.settled(repo, view, deadline.left_s)
        if options.start and options.until == "ready":
            view = await wait(repo, record.name, "ready", timeout_s=deadline.left_s)
        return view
    except InnkeeperError:
        with contextlib.suppress(InnkeeperError):
            await rm(repo, record.name, force=True, uid=record.uid, timeout_s=10.0)
        raise


def _record(parent: InstanceRecord, now: float, options: CloneOptions) -> InstanceRecord:
    how = ForkOptions(ssh_keys=options.ssh_keys, start=options.start, hold=options.hold)
    token, name = secrets.token_hex(8), check_name(options.name)
    record = record_of_copy(parent, name, 0, token, now, live=False, options=how)
    assert record.fork is not None
    origin: ForkOrigin = record.fork.model_copy(update={"full": True})
    return record.model_copy(update={"fork": origin})
