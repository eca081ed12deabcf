"""kill: end QEMU at once, whatever the guest does."""

from __future__ import annotations

from innkeeper.api.verbs import change
from innkeeper.control.lifecycle import is_active
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, Power, StopMode
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView


async def kill(repo: Repo, name: str, *, timeout_s: float | None = None) -> InstanceView:
    """End it, and wait until it is gone; a stopped instance is left as it is."""
    view = await repo.change_instance(name, _killed)
    return await change.settled(repo, view, change.QUICK_TIMEOUT_S if timeout_s is None else timeout_s)


def _killed(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord | None:
    change.refuse_removed(record)
    wanted = record.wanted
    if not is_active(record, status) and wanted.power is Power.OFF:
        return None if status.generation >= wanted.generation else change.raised(record, stop=StopMode.KILL)
    return change.raised(record, power=Power.OFF, stop=StopMode.KILL)
