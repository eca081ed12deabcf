"""start: from off to running; a running instance is left as it is."""

from __future__ import annotations

from typing import Literal

from innkeeper.api.admit import Admission
from innkeeper.api.verbs import change
from innkeeper.api.verbs.wait import wait
from innkeeper.control.lifecycle import has_failed, is_active, run_is_over
from innkeeper.errors import WrongState
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, Power, State, StopMode
from innkeeper.store.repo import Repo
from innkeeper.store.settle import Deadline
from innkeeper.store.view import InstanceView


async def start(
    repo: Repo,
    admission: Admission,
    name: str,
    *,
    until: Literal["running", "ready"] = "running",
    timeout_s: float | None = None,
) -> InstanceView:
    """Start it, and wait until it runs or is ready. Raises NoCapacity or Unsupported where its host
    cannot take it, and what the agent says went wrong."""
    if timeout_s is None:
        timeout_s = change.READY_TIMEOUT_S if until == "ready" else change.START_TIMEOUT_S
    deadline = Deadline(timeout_s)
    before = await repo.view(name)
    if is_active(before.record, before.status):
        view = await repo.change_instance(name, switched_on)
    else:
        record = before.record
        async with admission.turn(record.spec, but=name, host=record.host) as placement:
            view = await repo.change_instance(name, change.placed(switched_on, placement.nodes))
    view = await change.settled(repo, view, deadline)
    return await wait(repo, name, "ready", timeout_s=deadline) if until == "ready" else view


def switched_on(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord | None:
    """The record of an instance that is to run; None if that is wanted already."""
    change.refuse_removed(record)
    wanted = record.wanted
    over = run_is_over(record, status)
    if wanted.power is Power.ON and not over:
        return None
    paused = wanted.power is Power.PAUSED or (status.state is State.PAUSED and has_failed(record, status))
    if paused and not over:
        raise WrongState(f"{record.name} is paused", hint=f"inn resume {record.name}")
    # A stop that the guest did not follow is withdrawn: the run goes on as it is.
    withdrawn = status.state in (State.RUNNING, State.HUNG) and has_failed(record, status)
    epoch = wanted.epoch if withdrawn else wanted.epoch + 1
    return change.raised(record, power=Power.ON, epoch=epoch, stop=StopMode.GUEST)
