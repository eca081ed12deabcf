"""What `set` and `apply` share: another spec for an instance, and what becomes of it where it runs."""

from __future__ import annotations

from typing import Final

from innkeeper.api.verbs import change
from innkeeper.control.lifecycle import ACTIVE
from innkeeper.control.placement import absent_cpus
from innkeeper.errors import Unsupported
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, InstanceStatus, Power, State
from innkeeper.spec.livechange import Effects, effects
from innkeeper.store.repo import Repo
from innkeeper.store.view import InstanceView

# The agent gives a guest 10 s for each thing; a busy one may use them all and then answer.
CHANGE_TIMEOUT_S: Final = 120.0
NOTHING: Final = Effects((), {})


def what_follows(changed: tuple[str, ...], spec: InstanceSpec, status: InstanceStatus) -> Effects:
    return effects(changed, spec, status) if status.state in ACTIVE else NOTHING


def with_spec(record: InstanceRecord, spec: InstanceSpec, follows: Effects) -> InstanceRecord:
    """The record with `spec`. Where something is to be done at once, the agent is told so by the generation;
    everything else it reads when it needs it."""
    if follows.now:
        record = change.raised(record, change=record.wanted.generation + 1)
    return record.model_copy(update={"spec": spec})


async def refuse_absent(repo: Repo, host: str, spec: InstanceSpec) -> None:
    """Raises Unsupported for CPUs that the host of an instance lacks, before that is written down."""
    for one in await repo.hosts():
        if one.name == host and (objection := absent_cpus(spec, one.facts)) is not None:
            raise Unsupported(f"{host}: {objection.reason}", hint=objection.hint)


def waits_for_resume(view: InstanceView) -> bool:
    """Of a VM that stands still nothing can be asked: it takes up what is live when it runs on."""
    return view.status.state is State.PAUSED or view.record.wanted.power is Power.PAUSED


async def carried_out(repo: Repo, view: InstanceView, follows: Effects) -> InstanceView:
    """The view once the agent has done what was to be done at once. Raises what went wrong with that."""
    if not follows.now or waits_for_resume(view):
        return view
    return await change.settled(repo, view, CHANGE_TIMEOUT_S)
