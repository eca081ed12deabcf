"""set: change what may change on an instance without stopping it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from innkeeper.api.admit import Admission
from innkeeper.api.verbs import change
from innkeeper.api.verbs.respec import NOTHING, carried_out, refuse_absent, what_follows, with_spec
from innkeeper.errors import Refused, Unsupported
from innkeeper.spec.differences import differences
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, InstanceStatus, InstanceUpdate
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView


async def set_(
    repo: Repo, name: str, update: InstanceUpdate, admission: Admission | None = None
) -> InstanceView:
    """Change the fields that `update` has; the others stay. Raises Unsupported, and changes nothing, when one
    of them cannot be changed now."""
    follows = NOTHING
    before = await repo.view(name)
    after = merged(before.record.spec, update)
    await refuse_absent(repo, before.record.host, after)

    def updated(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord | None:
        nonlocal follows
        change.refuse_removed(record)
        spec = merged(record.spec, update)
        follows = what_follows(tuple(differences(record.spec, spec)), spec, status)
        if follows.now or follows.later:
            change.refuse_template(record)
        if follows.later:
            raise _not_now(name, follows.later)
        if spec == record.spec and not follows.now:
            return None
        return with_spec(record, spec, follows)

    async with (admission or Admission(repo)).of_change(before, after):
        view = await repo.change_instance(name, updated)
    return await carried_out(repo, view, follows)


def merged(spec: InstanceSpec, update: InstanceUpdate) -> InstanceSpec:
    """The spec with the fields of `update`, checked as a whole. Raises pydantic's ValidationError."""
    return InstanceSpec.model_validate(_over(spec.model_dump(mode="json"), update))


def _over(fields: dict[str, Any], update: BaseModel) -> dict[str, Any]:
    for name in update.model_fields_set:
        value = getattr(update, name)
        if isinstance(value, BaseModel):
            fields[name] = _over(dict(fields[name]), value)
        elif value is not None:
            fields[name] = value
    return fields


def _not_now(name: str, later: dict[str, str]) -> Refused:
    path, why = next(iter(later.items()))
    return Unsupported(
        f"{path} of {name} cannot change while it runs{': ' if why else ''}{why}",
        hint=f"stop it first (inn stop {name}), or apply a spec that has it for the next start",
        details={"field": path.split("."), "why": later},
    )
