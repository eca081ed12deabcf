"""set: change what may change on an instance without stopping it."""

from __future__ import annotations

from innkeeper.api.verbs import change
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, InstanceUpdate
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView


async def set_(repo: Repo, name: str, update: InstanceUpdate) -> InstanceView:
    """Change the fields that `update` has; the others stay."""
    changes = {
        field: value for field in update.model_fields_set if (value := getattr(update, field)) is not None
    }

    def updated(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord | None:
        change.refuse_removed(record)
        spec = record.spec.model_copy(update=changes)
        if spec == record.spec:
            return None
        # Not `raised`: the agent has nothing to carry out, it reads these fields when it needs them.
        return record.model_copy(update={"spec": spec})

    return await repo.change_instance(name, updated)
