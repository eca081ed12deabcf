"""keep: what was to be removed by itself stays."""

from __future__ import annotations

from innkeeper.api.verbs import change
from innkeeper.spec.instance import InstanceRecord, InstanceStatus
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView


async def keep(repo: Repo, name: str) -> InstanceView:
    """No longer removed when its run ends, or when the client that made it goes away."""

    def kept(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord | None:
        change.refuse_removed(record)
        if not record.wanted.remove_when_ended and not record.wanted.hold:
            return None
        return change.raised(record, remove_when_ended=False, hold="")

    return await change.settled(repo, await repo.change_instance(name, kept), change.QUICK_TIMEOUT_S)
