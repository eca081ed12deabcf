"""stop: ask the guest to shut down, up to a deadline; a stopped instance is left as it is."""

from __future__ import annotations

from innkeeper.api.verbs import change
from innkeeper.control.lifecycle import ACTIVE, is_active
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, Power, StopMode
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView


async def stop(repo: Repo, name: str, *, timeout_s: float | None = None) -> InstanceView:
    """Shut it down. Raises GuestTimeout, from the agent, when the guest does not in time."""
    limit = change.STOP_TIMEOUT_S if timeout_s is None else timeout_s

    def switched_off(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord | None:
        change.refuse_removed(record)
        if not is_active(record, status) and record.wanted.power is Power.OFF:
            return None
        # Nothing to ask a guest that is not there; off at once, and no longer to be started.
        mode = StopMode.GUEST if status.state in ACTIVE else StopMode.KILL
        return change.raised(record, power=Power.OFF, stop=mode, stop_timeout_s=limit)

    view = await repo.change_instance(name, switched_off)
    if not is_active(view.record, view.status):
        return view
    return await change.settled(repo, view, limit + change.GRACE_S)
