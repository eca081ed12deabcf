"""What the wanted and the observed of an instance say together; asked by the verbs and by admission."""

from __future__ import annotations

from typing import Final

from innkeeper.spec.instance import InstanceRecord, InstanceStatus, Power, State

# There is a QEMU process, or one is being started.
ACTIVE: Final = frozenset({State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING, State.HUNG})


def has_failed(record: InstanceRecord, status: InstanceStatus) -> bool:
    """The agent gave up on what is wanted now."""
    return status.failure is not None and status.failure.generation >= record.wanted.generation


def run_is_over(record: InstanceRecord, status: InstanceStatus) -> bool:
    """The run that is wanted has ended by itself, or could not be started; `start` begins another."""
    if status.state in ACTIVE:
        return False
    ended = status.ended is not None and status.ended.epoch >= record.wanted.epoch
    return ended or has_failed(record, status)


def is_active(record: InstanceRecord, status: InstanceStatus) -> bool:
    """It runs, or is about to."""
    if status.state in ACTIVE:
        return True
    return record.wanted.power is not Power.OFF and not run_is_over(record, status)
