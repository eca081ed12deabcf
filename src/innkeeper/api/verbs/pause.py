"""pause: let the vCPUs stand still; a paused instance is left as it is."""

from __future__ import annotations

from innkeeper.api.verbs import change
from innkeeper.errors import WrongState
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, Power, State
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView


async def pause(repo: Repo, name: str, *, timeout_s: float | None = None) -> InstanceView:
    """Pause it. Raises WrongState when it does not run."""
    view = await repo.change_instance(name, _paused)
    return await change.settled(repo, view, change.QUICK_TIMEOUT_S if timeout_s is None else timeout_s)


def _paused(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord | None:
    change.refuse_removed(record)
    change.refuse_template(record)
    if record.wanted.power is Power.PAUSED and status.state in (State.PAUSED, State.RUNNING):
        return None
    if status.state not in (State.RUNNING, State.PAUSED, State.HUNG) or record.wanted.power is Power.OFF:
        raise WrongState(
            f"{record.name} is {status.state}, not running", hint=f"inn start {record.name}, then pause it"
        )
    return change.raised(record, power=Power.PAUSED)
