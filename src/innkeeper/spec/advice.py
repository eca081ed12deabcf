"""Advice on an instance, and trials of it: what the rules of control/advice say, and what became of it."""

from __future__ import annotations

import enum
from typing import Any, Final, Literal

from pydantic import Field

from innkeeper.spec.base import Model, Name

Kind = Literal["cpu", "memory", "disk", "pages", "numa"]

DAY_S: Final = 86400.0
# The history has 25 hours, and closely the last ten minutes in steps of 5 s.
LEAST_WINDOW_S: Final = 10.0
MOST_WINDOW_S: Final = 25 * 3600.0
LEAST_DATA_S: Final = 5.0
# How long what was applied may be watched.
LEAST_TRIAL_S: Final = 5.0
MOST_TRIAL_S: Final = 86400.0


class Advice(Model):
    """One thing that would pay."""

    kind: Kind
    reason: str = Field(
        description="The rule: single-threaded, idle, busy, limited, throttled, swapping, full, roomy, "
        "squeezed, host-swaps, small-pages or remote."
    )
    what: str = Field(description="What to do, one line.")
    evidence: str = Field(description="What was seen, with numbers.")
    effect: str = Field(description="What is to be expected of it, and what it costs.")
    command: str = Field(description="The command that does it.")
    change: dict[str, Any] = Field(
        default_factory=dict, description="The fields of the spec that it changes, by path, as `inn set`."
    )
    live: bool = Field(description="It takes effect while the VM runs; false: at its next start.")
    why_not_live: str = ""


class Withheld(Model):
    """Why a rule gives no advice: all is well, too little is known, or it would not help."""

    kind: Kind
    reason: str = Field(
        description="fits, data, unknown, contended, parallelism, tried, host, guest or capacity."
    )
    what: str = Field(description="One line, with numbers.")


class TrialState(enum.StrEnum):
    """What became of advice that was applied.

    applying      the change is being made
    watching      it is made; the next window shows whether it was good
    reverting     it was worse: what was before is being put back
    kept          it stays
    reverted      it was worse, and is as it was
    refused       the guest or the host did not do it; all is as it was
    unjudged      somebody else changed it, the VM ended, or there were no readings: nothing more was done
    stuck         it was worse, and could not be put back
    """

    APPLYING = "applying"
    WATCHING = "watching"
    REVERTING = "reverting"
    KEPT = "kept"
    REVERTED = "reverted"
    REFUSED = "refused"
    UNJUDGED = "unjudged"
    STUCK = "stuck"


OPEN: Final = frozenset({TrialState.APPLYING, TrialState.WATCHING, TrialState.REVERTING})


class Trial(Model):
    """Advice that was applied. Durable: the daemon that finds one goes on with it."""

    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    kind: Kind
    reason: str
    what: str
    change: dict[str, Any] = Field(description="The fields that it changes, by path.")
    before: dict[str, Any] = Field(description="What they were.")
    epoch: int = Field(description="The run of the VM it is of.")
    state: TrialState
    started_at: float = Field(description="Seconds since the epoch.")
    changed_at: float = Field(default=0.0, description="When the change had been made; 0: not yet.")
    window_s: float = Field(description="How long it is watched.")
    ended_at: float = 0.0
    measured_before: dict[str, float] = Field(
        default_factory=dict, description="Averages of as long a time before the change."
    )
    measured_after: dict[str, float] = Field(default_factory=dict, description="Averages since.")
    outcome: str = Field(default="", description="What was decided and why, one line.")

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    @property
    def judged_at(self) -> float:
        return self.changed_at + self.window_s


class TrialsRecord(Model):
    """What the store keeps of an instance's trials, the latest last."""

    name: Name
    uid: str
    trials: tuple[Trial, ...] = ()


class InstanceAdvice(Model):
    name: str
    state: str
    window_s: float = Field(description="How far back was looked.")
    data_s: float = Field(description="Of that, how long it ran as it is now, with readings.")
    advice: tuple[Advice, ...] = Field(description="What would pay, the most urgent first.")
    withheld: tuple[Withheld, ...] = Field(description="What was looked at and is not advised, and why.")
    trials: tuple[Trial, ...] = Field(description="What was applied, under way or done, the latest last.")


class HostLoad(Model):
    """vCPUs against cores: what more of them costs."""

    name: str
    cpus: int = Field(description="CPUs VMs may use.")
    vcpus: int = Field(description="vCPUs of all VMs that run.")
    used: float | None = Field(default=None, description="CPUs in use now.")


class AdviceReport(Model):
    host: HostLoad
    instances: tuple[InstanceAdvice, ...]
