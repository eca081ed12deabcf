"""What to do next for one instance: a pure function of what is wanted and what is there.

The agent takes one step at a time and asks again after each; a crash at any point is repaired by
asking again. When `next_step` says None the instance is settled.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from innkeeper.spec.instance import InstanceRecord, InstanceStatus, Power, StopMode, Wanted

RESTART_BACKOFF_MAX_S: Final = 60.0
# Ends that were asked for; the restart policy is for the others.
REQUESTED_ENDS: Final = frozenset({"stopped", "killed", "saved"})


class Step(enum.Enum):
    CREATE = "create"  # make its disks
    START = "start"
    RESTART = "restart"  # start again by policy, after a pause that grows
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"  # ask the guest, up to the deadline
    KILL = "kill"
    CHANGE = "change"  # make what runs as its spec says now
    FREEZE = "freeze"  # take the moment that forks or a snapshot of it wait for
    PROMOTE = "promote"  # give a VM that was forked RAM of its own again, ahead of its next fork
    TEMPLATE = "template"  # freeze it for good, for others to start from
    WAKE = "wake"  # a template runs on
    REVERT = "revert"  # go back to a snapshot
    DISCARD = "discard"  # remove its files
    FORGET = "forget"  # delete it from the store


@dataclass(frozen=True)
class Seen:
    """What is there: its files, its QEMU (None: not running), and what was noted before."""

    files: bool
    epoch: int | None
    paused: bool
    status: InstanceStatus
    fork_waits: bool = False  # somebody waits for a moment of it
    promotable: bool = False  # it was forked, and there is memory to make it ready for the next one
    held: bool = False  # it stands still while its state is saved


def next_step(record: InstanceRecord, seen: Seen) -> Step | None:
    wanted, running = record.wanted, seen.epoch is not None
    if wanted.removed or _failed_creation(wanted, seen) or _finished_ephemeral(wanted, seen):
        if running:
            return Step.KILL
        return Step.DISCARD if seen.files else Step.FORGET
    if seen.status.failure and seen.status.failure.generation == wanted.generation:
        # Given up until the next verb; what there is of it can still be forked.
        return Step.FREEZE if seen.fork_waits and seen.status.created else None
    if not seen.status.created:
        return Step.CREATE
    if _reverts(wanted, seen):
        return Step.REVERT
    if seen.fork_waits:
        return Step.FREEZE
    if wanted.power is Power.OFF:
        return _end(wanted, seen) if running else None
    if not running:
        if not _ended_by_itself(wanted, seen):
            return Step.START
        return Step.RESTART if _policy_restarts(record, seen) else None
    if seen.epoch != wanted.epoch:
        return _end(wanted, seen)
    if seen.status.template:
        return None if wanted.template else Step.WAKE
    if wanted.power is Power.PAUSED:
        return None if seen.paused else Step.PAUSE
    if seen.paused:
        return None if seen.held else Step.RESUME
    if wanted.change != seen.status.changed:
        return Step.CHANGE
    if wanted.template and seen.status.ready:
        return Step.TEMPLATE
    return Step.PROMOTE if seen.promotable else None


def _end(wanted: Wanted, seen: Seen) -> Step:
    """A template's guest cannot be asked: it stands still, and what is on its disks stays as it is."""
    return Step.KILL if wanted.stop is StopMode.KILL or seen.status.template else Step.STOP


def _ended_by_itself(wanted: Wanted, seen: Seen) -> bool:
    """It ran in this very epoch: what is missing now is not a start that has yet to happen."""
    ended = seen.status.ended
    return ended is not None and ended.epoch == wanted.epoch


def _failed_creation(wanted: Wanted, seen: Seen) -> bool:
    """The verb that made it failed: nothing half-made may stay. Once that verb has been answered for, no
    failure is the creation's any more, though no other verb may have come since."""
    failure = seen.status.failure
    if seen.status.generation >= 1:
        return False
    if failure is None or failure.generation != 1 or wanted.generation != 1:
        return False
    return not seen.status.created or wanted.remove_if_start_fails


def _finished_ephemeral(wanted: Wanted, seen: Seen) -> bool:
    ended = seen.epoch is None and _ended_by_itself(wanted, seen)
    return wanted.remove_when_ended and ended and not wanted.saved and not _reverts(wanted, seen)


def _reverts(wanted: Wanted, seen: Seen) -> bool:
    return wanted.revert is not None and wanted.revert.token != seen.status.reverted


def _policy_restarts(record: InstanceRecord, seen: Seen) -> bool:
    ended, policy = seen.status.ended, record.spec.restart_policy
    if ended is None or ended.reason in REQUESTED_ENDS:
        return False
    return policy == "always" or (policy == "on-failure" and ended.reason != "guest-shutdown")


def restart_delay_s(restarts: int) -> float:
    """Pause before restart number `restarts` (from 0) in a row: 0, 1, 2, 4 ... seconds."""
    return 0.0 if restarts == 0 else min(RESTART_BACKOFF_MAX_S, 2.0 ** (restarts - 1))


def obsolete(step: Step, begun: Wanted, wanted: Wanted) -> bool:
    """Whether a step under way (for what was wanted when it was `begun`) is no longer wanted, so that it must
    be given up now instead of at its deadline. A guest that ignores `stop` must not make `kill` wait."""
    epoch = begun.epoch
    if step in (Step.DISCARD, Step.FORGET, Step.KILL, Step.FREEZE, Step.REVERT, Step.TEMPLATE, Step.WAKE):
        return False  # each ends by itself within seconds
    if wanted.removed:
        return True
    if step is Step.STOP:
        return wanted.stop is StopMode.KILL or (wanted.power is not Power.OFF and wanted.epoch == epoch)
    if step is Step.CHANGE:
        return wanted.power is Power.OFF or wanted.epoch != epoch or wanted.change != begun.change
    if step is Step.PROMOTE:
        # Cut in the middle, neither process is sure to have all of the VM: only for one that is to be killed.
        ends = wanted.power is Power.OFF or wanted.epoch != epoch
        reverts = wanted.revert is not None and wanted.revert != begun.revert
        return reverts or (ends and wanted.stop is StopMode.KILL)
    if step in (Step.START, Step.RESTART):
        return wanted.power is Power.OFF or wanted.epoch != epoch
    return False
