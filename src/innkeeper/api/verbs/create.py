"""create: a new instance, checked against its image and its host; started if asked for."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass
from typing import Literal

from innkeeper.api.admit import Admission
from innkeeper.api.verbs import change
from innkeeper.api.verbs.fork import ForkOptions, begin
from innkeeper.api.verbs.wait import wait
from innkeeper.clock import Clock
from innkeeper.control import templating
from innkeeper.control.admission import fitted_to_image
from innkeeper.errors import Conflict, InnkeeperError, NameTaken, NotFound, Unsupported, WrongState
from innkeeper.spec.base import check_name
from innkeeper.spec.image import ImageRecord
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, Power, Wanted
from innkeeper.store.kv import Compare, unchanged
from innkeeper.store.repo import Repo
from innkeeper.store.settle import Deadline
from innkeeper.store.view import InstanceView

Until = Literal["none", "running", "ready"]


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """`until` none: as soon as it is accepted; running: made, and running if it is started. `template`: which
    one to start from; without, one behind the image is taken where it fits, unless `cold`."""

    start: bool = False
    template: str = ""
    cold: bool = False
    keep_on_failure: bool = False
    remove_when_ended: bool = False
    hold: str = ""
    until: Until = "running"
    timeout_s: float | None = None


async def create(
    repo: Repo,
    admission: Admission,
    clock: Clock,
    name: str,
    spec: InstanceSpec,
    options: CreateOptions = CreateOptions(),
) -> InstanceView:
    """Create it under `name`, or a name of its own if that is empty. Nothing is left of it when it
    cannot be made, or its first start fails and `keep_on_failure` is not set: the agent sees to that."""
    if name:
        check_name(name)
    timeout_s = options.timeout_s or (
        change.READY_TIMEOUT_S if options.until == "ready" else change.START_TIMEOUT_S
    )
    deadline = Deadline(timeout_s)
    view = await _accepted(repo, admission, clock, name, spec, options)
    if options.until == "none":
        return view
    try:
        view = await change.settled(repo, view, deadline)
        if options.start and options.until == "ready":
            view = await wait(repo, view.name, "ready", timeout_s=deadline)
    except InnkeeperError as error:
        # Which instance it was: by the time the error is read its name may be another's.
        error.details |= {"name": view.name, "uid": view.record.uid}
        raise
    return view


async def _accepted(
    repo: Repo,
    admission: Admission,
    clock: Clock,
    name: str,
    spec: InstanceSpec,
    options: CreateOptions,
) -> InstanceView:
    """Write the record; once more when a generated name is taken or the image changed meanwhile."""
    for attempt in range(5):
        if name and attempt == 0 and await repo.find_instance(name) is not None:
            raise _taken(name)
        image, guards = await _image_of(repo, spec)
        fitted = fitted_to_image(spec, image) if image else spec
        parent = await _template_of(repo, fitted, image, options)
        if parent is not None:
            try:
                return await _from_template(
                    repo, admission, clock, parent, name or _own_name(spec), fitted, options
                )
            except NameTaken:
                if name:
                    raise
                continue
        async with admission.turn(fitted, to_run=options.start) as placement:
            machine = fitted.machine.model_copy(update={"type": placement.machine_type})
            record = InstanceRecord(
                name=name or _own_name(spec),
                uid=str(uuid.uuid4()),
                created_at=clock.time(),
                host=placement.host,
                nodes=placement.nodes,
                image_id=image.id if image else "",
                spec=fitted.model_copy(update={"machine": machine}),
                wanted=Wanted(
                    power=Power.ON if options.start else Power.OFF,
                    epoch=1 if options.start else 0,
                    remove_if_start_fails=options.start and not options.keep_on_failure,
                    remove_when_ended=options.remove_when_ended,
                    hold=options.hold,
                ),
            )
            try:
                return await repo.create_instance(record, provided=guards)
            except NameTaken:
                if name:
                    raise
            except Conflict:
                pass
    raise Conflict("The image is being changed by others all the time", hint="try again in a moment")


async def _template_of(
    repo: Repo, spec: InstanceSpec, image: ImageRecord | None, options: CreateOptions
) -> InstanceView | None:
    """The template to start it from, if there is to be one."""
    if options.template:
        view = await repo.view(options.template)
        change.refuse_removed(view.record)
        if not view.status.template:
            raise WrongState(
                f"{view.name} is no template", hint=f"make it one: inn template {view.name}; or fork it"
            )
        if other := templating.unlike(view.record, spec):
            raise Unsupported(
                f"A copy of template {view.name} cannot differ from it in {', '.join(other)}",
                hint="leave those out, or boot it: inn run IMAGE --cold",
            )
        return view
    if image is None or options.cold or not options.start:
        return None
    return templating.behind_image(spec, image.id, await repo.instances())


async def _from_template(
    repo: Repo,
    admission: Admission,
    clock: Clock,
    parent: InstanceView,
    name: str,
    spec: InstanceSpec,
    options: CreateOptions,
) -> InstanceView:
    machine = spec.machine.model_copy(update={"type": parent.record.spec.machine.type})
    how = ForkOptions(remove_when_ended=options.remove_when_ended, hold=options.hold)
    wanted = spec.model_copy(update={"machine": machine})
    async with admission.of_forks(parent.record.model_copy(update={"spec": wanted}), 1):
        (view,) = await begin(repo, clock, parent, [name], how, wanted)
    return view


def _taken(name: str) -> NameTaken:
    return NameTaken(
        f"There is an instance named {name} already",
        hint=f"choose another name, or remove it: inn rm {name}",
        details={"name": name},
    )


async def _image_of(repo: Repo, spec: InstanceSpec) -> tuple[ImageRecord | None, list[Compare]]:
    """The image, and the condition that it still is the same when the record is written."""
    if not spec.image:
        return None, []
    stored = await repo.image(spec.image)
    if stored.value.removing:
        raise NotFound(f"Image {spec.image} is being removed", hint="see inn image list")
    return stored.value, [unchanged(stored.kv)]


def _own_name(spec: InstanceSpec) -> str:
    stem = spec.image or "vm"
    return f"{stem[:50].rstrip('-')}-{secrets.token_hex(3)}"
