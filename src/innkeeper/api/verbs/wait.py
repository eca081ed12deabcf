"""wait: until an instance runs, is ready, or has stopped."""

from __future__ import annotations

from typing import Literal

from innkeeper.api.verbs.change import READY_TIMEOUT_S
from innkeeper.control.lifecycle import ACTIVE, run_is_over
from innkeeper.errors import StartFailed, WrongState
from innkeeper.spec.instance import Power, State
from innkeeper.store.repo import Repo
from innkeeper.store.settle import Limit, as_error
from innkeeper.store.view import InstanceView

Awaited = Literal["ready", "running", "stopped"]


async def wait(repo: Repo, name: str, awaited: Awaited, *, timeout_s: Limit | None = None) -> InstanceView:
    """The instance once it is as awaited. Raises WrongState when it is not going to be, StartFailed
    when its run ends before, GuestTimeout at the deadline."""
    await repo.instance(name)  # NotFound with close names, rather than that it went away
    reached = {"ready": _ready, "running": _running, "stopped": _stopped}[awaited]
    return await repo.wait_for(
        name,
        reached,
        READY_TIMEOUT_S if timeout_s is None else timeout_s,
        gone_ok=awaited == "stopped",
    )


def _stopped(view: InstanceView) -> bool:
    record, status = view.record, view.status
    if status.state in ACTIVE:
        return False
    return status.generation >= record.wanted.generation or run_is_over(record, status)


def _running(view: InstanceView) -> bool:
    _refuse_unless_coming(view)
    return view.status.state is State.RUNNING and view.status.epoch >= view.record.wanted.epoch


def _ready(view: InstanceView) -> bool:
    _refuse_unless_coming(view)
    if view.status.panicked:
        raise StartFailed(
            f"The kernel of {view.name} panicked before it was ready", hint=f"see inn logs {view.name}"
        )
    return view.status.ready and view.status.epoch >= view.record.wanted.epoch


def _refuse_unless_coming(view: InstanceView) -> None:
    record, status = view.record, view.status
    if record.wanted.power is Power.OFF and status.state is not State.RUNNING:
        raise WrongState(f"{view.name} is not running", hint=f"inn start {view.name}")
    if not run_is_over(record, status):
        return
    if status.failure is not None and status.failure.generation >= record.wanted.generation:
        raise as_error(status.failure)
    if status.ended is not None and record.spec.restart_policy == "never":
        detail = f": {status.ended.detail}" if status.ended.detail else ""
        raise StartFailed(
            f"{view.name} ended before it was ready ({status.ended.reason}){detail}",
            hint=f"see inn logs {view.name}",
        )
