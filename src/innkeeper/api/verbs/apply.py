"""apply: make an instance as a spec says: create it, or change it and say what needs a restart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from innkeeper.api.admit import Admission
from innkeeper.api.verbs import change
from innkeeper.api.verbs.create import CreateOptions, create
from innkeeper.api.verbs.respec import (
    NOTHING,
    carried_out,
    refuse_absent,
    waits_for_resume,
    what_follows,
    with_spec,
)
from innkeeper.clock import Clock
from innkeeper.control.admission import fitted_to_image
from innkeeper.control.placement import facts_for, pinned_machine
from innkeeper.errors import Conflict, Unsupported
from innkeeper.spec.base import check_name
from innkeeper.spec.differences import differences
from innkeeper.spec.host import HostRecord
from innkeeper.spec.instance import Disk, InstanceRecord, InstanceSpec, InstanceStatus
from innkeeper.spec.livechange import Effects
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView


@dataclass(frozen=True, slots=True)
class Applied:
    """`needs_restart` are those of `changed` which a running instance takes up at its next start, `reasons`
    why; `needs_resume` those which a paused one takes up when it runs on."""

    view: InstanceView | None  # None: it would be created (dry run)
    created: bool
    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]
    needs_resume: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


async def apply(
    repo: Repo,
    admission: Admission,
    clock: Clock,
    name: str,
    spec: InstanceSpec,
    *,
    dry_run: bool = False,
    before: Mapping[str, Any] | None = None,
) -> Applied:
    """Create `name` (not started) or change its spec. Raises Unsupported for what cannot change, Conflict
    where its spec is not `before` any more (as JSON): who changed it has not seen what others did."""
    check_name(name)
    stored = await repo.find_instance(name)
    if stored is None:
        if dry_run:
            return Applied(None, True, (), ())
        view = await create(repo, admission, clock, name, spec, CreateOptions())
        return Applied(view, True, (), ())
    image = await repo.find_image(spec.image) if spec.image else None
    fitted = fitted_to_image(spec, image.value) if image else spec
    hosts = [host for host in await repo.hosts() if host.name == stored.value.host]
    await refuse_absent(repo, stored.value.host, fitted)
    changed: tuple[str, ...] = ()
    follows = NOTHING

    def applied(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord | None:
        nonlocal changed, follows
        change.refuse_removed(record)
        if before is not None and record.spec.model_dump(mode="json") != before:
            raise Conflict(
                f"{name} was changed by somebody else meanwhile",
                hint=f"look at it again: inn show {name} --yaml",
                details={"stale": True},
            )
        wanted = _keep_pin(fitted, record.spec, hosts)
        changed = tuple(differences(record.spec, wanted))
        _refuse_fixed(record, wanted)
        follows = what_follows(changed, wanted, status)
        if follows.now or follows.later:
            change.refuse_template(record)
        if dry_run or not (changed or follows.now):
            return None
        return with_spec(record, wanted, follows)

    async with admission.of_change(await repo.view(name), fitted):
        view = await repo.change_instance(name, applied)
    resume = follows.now if waits_for_resume(view) else ()
    if not dry_run:
        view = await carried_out(repo, view, follows)
    return Applied(view, False, changed, tuple(follows.later), resume, _reasons(follows))


def _reasons(follows: Effects) -> dict[str, str]:
    return {path: why for path, why in follows.later.items() if why}


def _keep_pin(spec: InstanceSpec, old: InstanceSpec, hosts: list[HostRecord]) -> InstanceSpec:
    """The spec with a versioned machine type: the one it has, if the alias it had at its creation is
    given again (the guest keeps its hardware), else what the alias means on its host now."""
    asked = spec.machine.type
    facts = hosts[0].facts if hosts else None
    if asked == old.machine.type or _is_version_of(old.machine.type, asked):
        pinned = old.machine.type
    else:
        facts = facts_for(spec, facts) if facts else None
        pinned = (pinned_machine(asked, facts) if facts else None) or ""
    if not pinned:
        known = ", ".join(sorted(facts.machine_aliases)) if facts else "none"
        raise Unsupported(f"There is no machine type {asked} on its host", hint=f"choose one of: {known}")
    return spec.model_copy(update={"machine": spec.machine.model_copy(update={"type": pinned})})


def _is_version_of(versioned: str, alias: str) -> bool:
    """pc-q35-7.2 is a version of q35, pc-i440fx-7.2 of pc."""
    stem = {"q35": "pc-q35-", "pc": "pc-i440fx-"}.get(alias, alias + "-")
    return versioned.startswith(stem)


def _refuse_fixed(record: InstanceRecord, new: InstanceSpec) -> None:
    """What an instance's own disks were made from does not change under them."""
    old = record.spec
    if new.image != old.image:
        raise _fixed(record.name, "image")
    if _own_disks(new) != _own_disks(old):
        raise _fixed(record.name, "disks")


def _own_disks(spec: InstanceSpec) -> list[tuple[str, int | None, str]]:
    return [_origin(disk) for disk in spec.disks if not disk.path]


def _origin(disk: Disk) -> tuple[str, int | None, str]:
    return disk.name, disk.size, disk.copy_of


def _fixed(name: str, field: str) -> Unsupported:
    what = "image it was made from" if field == "image" else "disks of its own"
    return Unsupported(
        f"The {what} cannot change on an existing instance: {name}",
        hint=f"remove it (inn rm {name}) and apply again, or use another name",
        details={"field": ["spec", field]},
    )
