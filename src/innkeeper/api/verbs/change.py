"""What the verbs share: raising the generation, refusing by state, deadlines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from innkeeper.errors import WrongState
from innkeeper.spec.instance import InstanceRecord, InstanceStatus
from innkeeper.spec.numa import NodeShare
from innkeeper.store.repo import Repo
from innkeeper.store.settle import Limit
from innkeeper.store.view import InstanceView

STOP_TIMEOUT_S: Final = 60.0
START_TIMEOUT_S: Final = 120.0
READY_TIMEOUT_S: Final = 300.0
# For what needs nothing of the guest: QEMU answers in milliseconds, a busy host in seconds.
QUICK_TIMEOUT_S: Final = 30.0
# The agent enforces the deadline of a stop; wait a little longer, so that its answer is the one given.
GRACE_S: Final = 10.0


def raised(record: InstanceRecord, **wanted: Any) -> InstanceRecord:
    """The record with the next generation of what is wanted.

    Whoever touches an instance after its creation means to keep it, so a failed start no longer
    removes it. A revert that failed is not tried again with the next verb.
    """
    update = {
        "remove_if_start_fails": False,
        "revert": None,
        "saved": False,
        **wanted,
        "generation": record.wanted.generation + 1,
    }
    return record.model_copy(update={"wanted": record.wanted.model_copy(update=update)})


Change = Callable[[InstanceRecord, InstanceStatus], InstanceRecord | None]


def placed(make: Change, nodes: tuple[NodeShare, ...]) -> Change:
    """The change, with the NUMA nodes that admission chose."""

    def changed(record: InstanceRecord, status: InstanceStatus) -> InstanceRecord | None:
        after = make(record, status)
        return after and after.model_copy(update={"nodes": nodes})

    return changed


def refuse_removed(record: InstanceRecord) -> None:
    if record.wanted.removed:
        raise WrongState(
            f"{record.name} is being removed", hint=f"wait for it, or repeat: inn rm {record.name}"
        )


def refuse_template(record: InstanceRecord) -> None:
    """What would change the moment that others start from, or needs a guest that runs."""
    if record.wanted.template is not None:
        raise WrongState(
            f"{record.name} is a template: it stands still, so that others start from it",
            hint=f"do it with a copy: inn fork {record.name}; or let it run on: inn resume {record.name}",
        )


async def settled(repo: Repo, view: InstanceView, limit: Limit) -> InstanceView:
    """Wait for the agent's answer to what `view` wants."""
    record = view.record
    return await repo.settle(record.name, record.wanted.generation, limit, uid=record.uid)
