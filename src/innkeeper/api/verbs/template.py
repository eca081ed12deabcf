"""template: freeze a running instance, so that others start from it; or change its pool."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from innkeeper.api.verbs import change
from innkeeper.api.verbs.wait import wait
from innkeeper.control.lifecycle import is_active
from innkeeper.errors import BadRequest, Failed, InnkeeperError, WrongState
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, State, Template
from innkeeper.store.repo import Repo
from innkeeper.store.settle import Deadline
from innkeeper.store.view import InstanceView


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """None: as it was, or the default."""

    pool: int | None = None
    serves_image: bool | None = None
    timeout_s: float | None = None


async def template(repo: Repo, name: str, options: TemplateOptions) -> InstanceView:
    """Freeze it as soon as it is ready; of one that is frozen already, change what is asked. If it cannot be
    frozen it runs on, and why is raised."""
    deadline = Deadline(options.timeout_s or change.READY_TIMEOUT_S)
    view = await repo.view(name)
    change.refuse_removed(view.record)
    if not view.status.template:
        if not is_active(view.record, view.status):
            raise WrongState(f"{name} is {view.status.state}: nothing to freeze", hint=f"inn start {name}")
        view = await wait(repo, name, "ready", timeout_s=deadline)
    before = view.record.wanted.template

    def asked(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord:
        change.refuse_removed(record)
        if not status.template and status.state is not State.RUNNING:
            raise WrongState(f"{name} is {status.state}, not running", hint=f"let it run: inn resume {name}")
        now = record.wanted.template or Template()
        if options.serves_image and not record.spec.image:
            raise BadRequest(f"{name} was made from no image of the catalogue", hint="leave out --for-image")
        given = {"pool": options.pool, "serves_image": options.serves_image}
        update = {field: value for field, value in given.items() if value is not None}
        return change.raised(record, template=now.model_copy(update=update))

    view = await repo.change_instance(name, asked)
    try:
        view = await change.settled(repo, view, deadline)
        if not view.status.template:
            raise Failed(f"{name} could not be frozen: it is {view.status.state}", hint="see inn show")
    except InnkeeperError:
        if before is None:
            with contextlib.suppress(InnkeeperError):
                await repo.change_instance(name, lambda record, _: change.raised(record, template=None))
        raise
    return view
