"""What the agent does next, as a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from innkeeper.agent.plan import Seen, Step, next_step, obsolete, restart_delay_s
from innkeeper.spec.instance import (
    Ended,
    Failure,
    InstanceRecord,
    InstanceSpec,
    InstanceStatus,
    Power,
    StopMode,
    Wanted,
)


def record(policy: str = "never", **wanted: object) -> InstanceRecord:
    spec = InstanceSpec.model_validate({"image": "tiny", "restart_policy": policy})
    fields = {"generation": 3, "epoch": 2, "power": Power.ON, **wanted}
    return InstanceRecord(
        name="web", uid="u", created_at=0.0, host="h", spec=spec, wanted=Wanted.model_validate(fields)
    )


def seen(*, epoch: int | None = None, paused: bool = False, files: bool = True, **status: object) -> Seen:
    return Seen(files, epoch, paused, InstanceStatus.model_validate({"created": True, **status}))


def ended(epoch: int, reason: str = "guest-shutdown") -> Ended:
    return Ended(epoch=epoch, reason=reason, at=0.0)


def failed(generation: int) -> Failure:
    return Failure(generation=generation, code="failed", message="no")


CASES = {
    "new": (record(generation=1), seen(created=False, files=False), Step.CREATE),
    "made, wanted on": (record(), seen(), Step.START),
    "made, wanted off": (record(power=Power.OFF), seen(), None),
    "runs": (record(), seen(epoch=2), None),
    "runs, wanted off": (record(power=Power.OFF), seen(epoch=2), Step.STOP),
    "runs, to be killed": (record(power=Power.OFF, stop=StopMode.KILL), seen(epoch=2), Step.KILL),
    "runs, to be restarted": (record(epoch=3), seen(epoch=2), Step.STOP),
    "stopped on the way to a restart": (record(epoch=3), seen(ended=ended(2, "stopped")), Step.START),
    "runs, wanted paused": (record(power=Power.PAUSED), seen(epoch=2), Step.PAUSE),
    "paused, wanted paused": (record(power=Power.PAUSED), seen(epoch=2, paused=True), None),
    "ready, to be a template": (record(template={}), seen(epoch=2, ready=True), Step.TEMPLATE),
    "not ready, to be a template": (record(template={}), seen(epoch=2), None),
    "a template": (record(template={}), seen(epoch=2, paused=True, template="t"), None),
    "a template to run on": (record(), seen(epoch=2, paused=True, template="t"), Step.WAKE),
    "a template to be off": (record(power=Power.OFF), seen(epoch=2, paused=True, template="t"), Step.KILL),
    "a template to be restarted": (
        record(epoch=3, template={}),
        seen(epoch=2, paused=True, template="t"),
        Step.KILL,
    ),
    "paused, wanted on": (record(), seen(epoch=2, paused=True), Step.RESUME),
    "runs, to be changed": (record(change=3), seen(epoch=2), Step.CHANGE),
    "runs, changed": (record(change=3), seen(epoch=2, changed=3), None),
    "paused, to be changed": (record(power=Power.PAUSED, change=3), seen(epoch=2, paused=True), None),
    "paused, to be changed and to run": (record(change=3), seen(epoch=2, paused=True), Step.RESUME),
    "off, to be changed": (record(power=Power.OFF, change=3), seen(), None),
    "off, wanted paused": (record(power=Power.PAUSED), seen(), Step.START),
    "shut down by its guest": (record(), seen(ended=ended(2)), None),
    "shut down, policy always": (record("always"), seen(ended=ended(2)), Step.RESTART),
    "shut down, policy on-failure": (record("on-failure"), seen(ended=ended(2)), None),
    "died, policy on-failure": (record("on-failure"), seen(ended=ended(2, "qemu-died")), Step.RESTART),
    "died, policy never": (record(), seen(ended=ended(2, "qemu-died")), None),
    "killed by a verb, policy always": (record("always"), seen(ended=ended(2, "killed")), None),
    "made, then something fails before any other verb": (
        record(generation=1, remove_if_start_fails=True),
        seen(epoch=2, paused=True, generation=1, failure=failed(1)),
        None,
    ),
    "its first start fails": (
        record(generation=1, remove_if_start_fails=True),
        seen(failure=failed(1)),
        Step.DISCARD,
    ),
    "failed at this": (record(), seen(failure=failed(3)), None),
    "failed at an earlier verb": (record(), seen(failure=failed(2)), Step.START),
    "removed, runs": (record(removed=True), seen(epoch=2), Step.KILL),
    "removed, files": (record(removed=True), seen(), Step.DISCARD),
    "removed, nothing left": (record(removed=True), seen(files=False), Step.FORGET),
    "removed, though it failed": (record(removed=True), seen(failure=failed(3)), Step.DISCARD),
    "creation failed": (
        record(generation=1, epoch=1),
        seen(created=False, failure=failed(1)),
        Step.DISCARD,
    ),
    "first start failed, `run`": (
        record(generation=1, epoch=1, remove_if_start_fails=True),
        seen(failure=failed(1)),
        Step.DISCARD,
    ),
    "first start failed, `create --start`": (
        record(generation=1, epoch=1),
        seen(failure=failed(1)),
        None,
    ),
    "a later start failed, `run`": (record(remove_if_start_fails=True), seen(failure=failed(3)), None),
    "ephemeral, ended": (record(remove_when_ended=True), seen(ended=ended(2)), Step.DISCARD),
    "ephemeral, not yet started": (record(remove_when_ended=True), seen(), Step.START),
}


WAITED_FOR = {
    "a fork waits": (record(), {"fork_waits": True}, {}, Step.FREEZE),
    "a fork waits for one that is off": (
        record(power=Power.OFF),
        {"fork_waits": True},
        {"epoch": None},
        Step.FREEZE,
    ),
    "forked, memory to spare": (record(), {"promotable": True}, {}, Step.PROMOTE),
    "paused and promotable": (record(), {"promotable": True}, {"paused": True}, Step.RESUME),
    "held while its state is saved": (record(), {"held": True}, {"paused": True}, None),
    "no longer held": (record(), {}, {"paused": True}, Step.RESUME),
}


@pytest.mark.parametrize(("wanted", "flags", "state", "step"), WAITED_FOR.values(), ids=WAITED_FOR)
def test_what_others_wait_for(
    wanted: InstanceRecord, flags: dict[str, bool], state: dict[str, Any], step: Step | None
) -> None:
    assert next_step(wanted, replace(seen(**{"epoch": 2, **state}), **flags)) is step


@pytest.mark.parametrize("case", CASES)
def test_next_step(case: str) -> None:
    wanted, there, step = CASES[case]
    assert next_step(wanted, there) is step


@pytest.mark.parametrize(
    ("step", "wanted", "given_up"),
    [
        (Step.STOP, {"power": Power.OFF, "stop": StopMode.KILL}, True),
        (Step.STOP, {"power": Power.OFF}, False),
        (Step.STOP, {"power": Power.ON}, True),
        (Step.STOP, {"power": Power.ON, "epoch": 3}, False),
        (Step.START, {"power": Power.OFF}, True),
        (Step.START, {"power": Power.PAUSED}, False),
        (Step.START, {"epoch": 3}, True),
        (Step.CHANGE, {"power": Power.OFF}, True),
        (Step.CHANGE, {"power": Power.PAUSED}, False),
        (Step.CHANGE, {"change": 4}, True),
        (Step.CREATE, {"power": Power.OFF}, False),
        (Step.CREATE, {"removed": True}, True),
        (Step.DISCARD, {"removed": True}, False),
        (Step.KILL, {"removed": True}, False),
    ],
)
def test_obsolete(step: Step, wanted: dict[str, object], given_up: bool) -> None:
    assert obsolete(step, record(epoch=2).wanted, record(**wanted).wanted) is given_up


def test_restarts_pause_longer_and_longer() -> None:
    assert [restart_delay_s(number) for number in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
