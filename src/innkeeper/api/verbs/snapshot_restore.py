"""snapshot restore: an instance goes back to a snapshot, or a new one is made from it."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass
from typing import Literal

from innkeeper.api.admit import Admission
from innkeeper.api.verbs import change
from innkeeper.api.verbs.wait import wait
from innkeeper.clock import Clock
from innkeeper.control.lifecycle import is_active
from innkeeper.errors import Conflict, WrongState
from innkeeper.spec.copying import spec_of_copy
from innkeeper.spec.instance import (
    ForkOrigin,
    InstanceRecord,
    InstanceSpec,
    InstanceStatus,
    Power,
    Revert,
    State,
    StopMode,
    Wanted,
)
from innkeeper.spec.snapshot import SnapshotRecord, SnapshotState, check_restorable
from innkeeper.store.repo import Repo
from innkeeper.store.settle import Deadline
from innkeeper.store.view import InstanceView

RUNS = (State.RUNNING, State.PAUSED, State.HUNG)


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """`new_name` empty: in place. `of_save`: it was put away, not taken back to what it was once."""

    new_name: str = ""
    of_save: bool = False
    ssh_keys: bool = False
    until: Literal["running", "ready"] = "ready"
    timeout_s: float | None = None


async def snapshot_restore(
    repo: Repo, admission: Admission, clock: Clock, name: str, snapshot: str, options: RestoreOptions
) -> InstanceView:
    """Restore it. With memory the VM runs on from that moment; of disks alone it is as it was before:
    one that runs is ended and boots from them, one that is off stays off; a new one boots.

    What can be known beforehand is refused before anything is ended. Raises Unsupported, NoCapacity, or
    Failed for files that are damaged.
    """
    deadline = Deadline(options.timeout_s or change.READY_TIMEOUT_S)
    view = await repo.view(name)
    change.refuse_removed(view.record)
    found = await repo.snapshots.get(name, snapshot)
    if found.state is not SnapshotState.READY:
        raise WrongState(f"Snapshot {snapshot} of {name} is {found.state}", hint="wait until it is ready")
    await _check_host(repo, found)
    if options.new_name:
        view = await _into_new(repo, admission, clock, found, options)
    else:
        spec = _run_on(found.spec, view.record.spec) if options.of_save else found.spec
        view = await _in_place(repo, admission, view, found, spec)
    revert = view.record.wanted.revert
    view = await change.settled(repo, view, deadline)
    if revert is not None and view.status.reverted != revert.token:
        raise Conflict(f"Another command came between for {view.name}", hint="see inn show, and try again")
    if view.record.wanted.power is Power.ON and options.until == "ready":
        view = await wait(repo, view.name, "ready", timeout_s=deadline)
    return view


def _run_on(saved: InstanceSpec, now: InstanceSpec) -> InstanceSpec:
    """The spec it was saved with, and what was asked of its host meanwhile: of that its guest sees nothing.
    Reporting of free pages is a device's feature, which is as it was."""
    memory = now.qos.memory.model_copy(update={"reporting": saved.qos.memory.reporting})
    qos = now.qos.model_copy(update={"memory": memory})
    return saved.model_copy(update={"qos": qos, "labels": now.labels, "restart_policy": now.restart_policy})


async def _check_host(repo: Repo, snapshot: SnapshotRecord) -> None:
    for host in await repo.hosts():
        if host.name == snapshot.host:
            facts = host.facts
            foreign = [one for qemu in facts.foreign.values() for one in qemu.machine_types]
            check_restorable(
                snapshot,
                qemu_version=facts.qemu_version,
                machine_types=(*facts.machine_types, *foreign),
                kvm=facts.kvm == "hardware",
            )


async def _in_place(
    repo: Repo, admission: Admission, view: InstanceView, snapshot: SnapshotRecord, spec: InstanceSpec
) -> InstanceView:
    def reverted(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord:
        change.refuse_removed(record)
        change.refuse_template(record)
        runs = status.state in RUNS
        if is_active(record, status) and not runs:
            raise WrongState(
                f"{record.name} is {status.state}: it cannot be restored now", hint="try again in a moment"
            )
        memory = snapshot.kind == "memory"
        order = Revert(
            token=secrets.token_hex(8),
            snapshot=snapshot.id,
            name=snapshot.name,
            memory=memory,
            start=memory or runs,
        )
        # In a run that goes on the epoch stays: if the snapshot cannot be taken up, nothing has changed.
        epoch = record.wanted.epoch if runs or not order.start else record.wanted.epoch + 1
        power = Power.ON if order.start else Power.OFF
        changed = change.raised(record, revert=order, power=power, epoch=epoch, stop=StopMode.GUEST)
        return changed.model_copy(update={"spec": spec})

    name = view.record.name
    if is_active(view.record, view.status) or snapshot.kind != "memory":
        return await repo.change_instance(name, reverted)
    async with admission.turn(spec, but=name, host=view.record.host) as placement:
        return await repo.change_instance(name, change.placed(reverted, placement.nodes))


async def _into_new(
    repo: Repo, admission: Admission, clock: Clock, snapshot: SnapshotRecord, options: RestoreOptions
) -> InstanceView:
    spec = spec_of_copy(snapshot.spec)
    record = InstanceRecord(
        name=options.new_name,
        uid=str(uuid.uuid4()),
        created_at=clock.time(),
        host=snapshot.host,
        image_id=snapshot.image_id,
        spec=spec,
        wanted=Wanted(power=Power.ON, epoch=1, remove_if_start_fails=True),
        fork=ForkOrigin(
            parent=snapshot.instance,
            parent_uid=snapshot.uid,
            moment=snapshot.id,
            ssh_keys=options.ssh_keys,
            live=snapshot.kind == "memory",
            durable=True,
        ),
    )
    async with admission.turn(spec, host=snapshot.host) as placement:
        return await repo.create_instance(record.model_copy(update={"nodes": placement.nodes}))
