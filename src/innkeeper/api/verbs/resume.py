"""resume: let a paused instance, or a template, run on; a running one is left as it is."""

from __future__ import annotations

from innkeeper.api.verbs import change
from innkeeper.errors import WrongState
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, Power, State
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView


async def resume(repo: Repo, name: str, *, timeout_s: float | None = None) -> InstanceView:
    """Resume it. Raises WrongState when it is neither paused nor running."""
    view = await repo.change_instance(name, _resumed)
    return await change.settled(repo, view, change.QUICK_TIMEOUT_S if timeout_s is None else timeout_s)


def _resumed(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord | None:
    change.refuse_removed(record)
    if record.wanted.template is not None:
        return change.raised(record, template=None)
    wanted = record.wanted.power
    if wanted is Power.ON and status.state is State.RUNNING:
        return None
    if status.state is State.PAUSED or (
        wanted is Power.PAUSED and status.state in (State.RUNNING, State.HUNG)
    ):
        # The guest may also have been paused by QEMU itself (disk full), with power on wanted.
        return change.raised(record, power=Power.ON)
    raise WrongState(f"{record.name} is {status.state}, not paused", hint=f"inn start {record.name}")
