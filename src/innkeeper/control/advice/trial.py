"""Whether applied advice was good: the next window against as long a time before. Pure.

Each reason for a change has its own ways to be wrong; a rise counts only above an amount and a factor, since
loads change by themselves.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from innkeeper.control.advice import thresholds as T
from innkeeper.control.advice.evidence import Bucket, duration, mean, percent
from innkeeper.spec.advice import Trial
from innkeeper.units import human_size

# What is measured before and after, of the history; `wait` of each vCPU.
MEASURED: Final = (
    "demand", "cpu", "throttled", "major_faults", "refaults", "swapped", "guest_swap_in", "working_set",
    "disk_read", "disk_write", "pressure_cpu", "pressure_memory", "pressure_io",
)  # fmt: skip

Measures = Mapping[str, float]


class Verdict(enum.Enum):
    WAIT = "wait"
    KEEP = "keep"
    REVERT = "revert"
    UNJUDGED = "unjudged"


@dataclass(frozen=True, slots=True)
class Look:
    """What there is at one moment. `values`: the changed fields as the spec has them; `after`: measured since
    the change, over `data_s` seconds."""

    now: float
    running: bool
    epoch: int
    values: Mapping[str, Any]
    after: Measures
    data_s: float


def measured(rows: Sequence[Bucket], cpus: int, **more: float | None) -> dict[str, float]:
    """Averages of what is known; `more`: what the history does not have."""
    found = {name: mean(rows, name) for name in MEASURED}
    wait = mean(rows, "wait")
    found |= {"wait": wait / cpus if wait is not None and cpus else None, **more}
    return {name: round(value, 6) for name, value in found.items() if value is not None}


def settle_s(window_s: float) -> float:
    """How long after a change readings may still tell of before."""
    return min(T.SETTLE_S, window_s / 2)


def judge(trial: Trial, look: Look) -> tuple[Verdict, str]:
    """What to do with a trial that is being watched, and why, one line."""
    for path, value in trial.change.items():
        if look.values.get(path) != value:
            return Verdict.UNJUDGED, f"{path} was changed by somebody else meanwhile"
    if not look.running or look.epoch != trial.epoch:
        return Verdict.UNJUDGED, "the VM did not run on until it could be judged; the change stays"
    if look.now < trial.judged_at:
        return Verdict.WAIT, ""
    if look.data_s < T.TRIAL_DATA * (trial.window_s - settle_s(trial.window_s)):
        if look.now < trial.changed_at + T.TRIAL_GRACE * trial.window_s:
            return Verdict.WAIT, ""
        return Verdict.UNJUDGED, "too few readings to judge it; the change stays"
    if why := worse(trial, look.after):
        return Verdict.REVERT, why
    return Verdict.KEEP, f"not worse in {duration(trial.window_s)}: {_told(trial, look.after)}"


def worse(trial: Trial, after: Measures) -> str:
    """In what the next window was worse; "" if it was not."""
    before = trial.measured_before
    if trial.reason in ("single-threaded", "idle") and (why := _starved(trial, before, after)):
        return why
    for rise in _RISES.get(trial.reason, ()):
        if why := rise.seen(before, after):
            return why
    return ""


def _starved(trial: Trial, before: Measures, after: Measures) -> str:
    """Fewer vCPUs that are all in use: what was cut off, what grew against the ceiling, what queues. One
    thread that fills one vCPU, as it did before, is none of these."""
    cpus = int(trial.change.get("cpu.count", 0))
    was, now = before.get("demand"), after.get("demand")
    if was is None or now is None or not cpus or now < T.SATURATED * cpus:
        return ""
    used = f"{was:.2f} CPUs before, {now:.2f} of {cpus} now"
    if now < was * (1 - T.CUT):
        return f"it lacks vCPUs: {used}"
    if trial.reason == "idle" and was < now * (1 - T.CUT):
        return f"its load rose to all of its vCPUs: {used}"
    queued, queue = before.get("runnable"), after.get("runnable")
    if queue is not None and queue > T.QUEUED * cpus and queue > T.QUEUE_RISE * (queued or 0.0):
        return f"tasks queue in its guest: {queued or 0.0:.1f} runnable before, {queue:.1f} on {cpus} now"
    return ""


@dataclass(frozen=True, slots=True)
class Rise:
    """Worse if `name` rose by more than `by` and to more than `factor` times what it was."""

    name: str
    by: float
    said: str
    unit: str  # share, bytes or count
    factor: float = T.RISE

    def seen(self, before: Measures, after: Measures) -> str:
        if self.name not in after:
            return ""
        was, now = before.get(self.name, 0.0), after[self.name]
        if now - was <= self.by or now <= self.factor * was:
            return ""
        return f"{self.said}: {_shown(was, self.unit)} before, {_shown(now, self.unit)} now"


_WAITS: Final = Rise("wait", T.WAIT_RISE, "its vCPUs wait for the host's CPUs", "share")
_FAULTS: Final = Rise("major_faults", T.FAULTS_RISE, "it waits for memory that was swapped out", "count")
_MEMORY: Final = Rise("pressure_memory", T.PRESSURE_RISE, "it waits for memory", "share")
_REFAULTS: Final = Rise("refaults", T.FAULTS_RISE, "the host reads its memory back", "count")
_IO: Final = Rise("pressure_io", T.PRESSURE_RISE, "it waits for its disks", "share")
_SHORT_OF_MEMORY: Final = (
    Rise("guest_swap_in", T.SWAPPING_IN_BYTES, "its guest swaps in", "bytes"),
    Rise("disk_read", T.READS_RISE_BYTES, "its guest reads again what it had in memory", "bytes"),
)
_RISES: Final[Mapping[str, tuple[Rise, ...]]] = {
    "busy": (_WAITS,),
    "limited": (_WAITS,),
    "throttled": (_IO,),
    "roomy": (*_SHORT_OF_MEMORY, _FAULTS, _REFAULTS, _MEMORY),
    "full": (_FAULTS, _REFAULTS, _MEMORY),
    "swapping": (_FAULTS, _REFAULTS, _MEMORY),
    "squeezed": (_FAULTS, _REFAULTS, _MEMORY),
    "host-swaps": (_FAULTS, _REFAULTS, _MEMORY),
    "remote": (_WAITS,),
}


def _shown(value: float, unit: str) -> str:
    if unit == "share":
        return percent(value)
    return f"{human_size(value)}/s" if unit == "bytes" else f"{value:.0f} a second"


def _told(trial: Trial, after: Measures) -> str:
    """The number a person looks for first."""
    before = trial.measured_before
    if trial.kind == "memory" and "working_set" in after:
        return f"working set {human_size(after['working_set'])}"
    if trial.kind == "disk":
        was, now = (one.get("disk_read", 0.0) + one.get("disk_write", 0.0) for one in (before, after))
        return f"disks {human_size(was)}/s before, {human_size(now)}/s now"
    return f"CPUs {before.get('demand', 0.0):.2f} before, {after.get('demand', 0.0):.2f} now"
