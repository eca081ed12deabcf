"""Why a VM is slow: the answer of `inn top --why` and of the API.

`lost` is a share of the time, 0 to 1: of what the VM wanted to do in that time, the part in which this held
it up. A VM that wants one CPU all the time and gets half of one has lost 0.5; so has one of four vCPUs that
gets two. All of a VM's losses together are 1 at most. null is "not known"; `missing` says why.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from innkeeper.spec.base import Model

Resource = Literal["cpu", "cpu-limit", "stolen", "memory", "memory-limit", "disk", "disk-limit"]
ConsumerKind = Literal["instance", "other", "merger", "stolen"]
Unit = Literal["cpus", "bytes", "share", "bytes/s"]


class Consumer(Model):
    """Who used the resource in that very time: averages weigh each moment by how much the VM lost in it."""

    kind: ConsumerKind = Field(
        description="instance: a VM of this daemon; other: anything else on the host; merger: the kernel's "
        "merging of equal pages; stolen: whoever runs this host as a VM."
    )
    name: str = Field(description="Of the instance, or words for what it is.")
    used: float = Field(description="In the unit of the cause.")
    itself: bool = Field(default=False, description="It is the VM in question.")
    shares: str | int | None = Field(default=None, description="low, normal, high or a number; of instances.")
    reservation: float | None = Field(default=None, description="In the unit of the cause; null: none.")
    limit: float | None = Field(default=None, description="In the unit of the cause; null: none.")


class Remedy(Model):
    command: str = Field(description="Empty where no command of this daemon would help.")
    effect: str


class Cause(Model):
    resource: Resource
    device: str = Field(default="", description="Of the host, of a disk.")
    lost: float | None = Field(description="Share of the time, 0 to 1; null: not known.")
    verdict: str = Field(description="One sentence.")
    missing: str = Field(default="", description="Why it is not known.")
    unit: Unit | None = Field(default=None, description="Of `capacity` and of what the users used.")
    capacity: float | None = Field(default=None, description="What there is of it.")
    numbers: dict[str, float] = Field(default_factory=dict, description="What the verdict follows from.")
    users: tuple[Consumer, ...] = Field(default=(), description="Who used most first.")
    advice: tuple[Remedy, ...] = ()


class Why(Model):
    name: str
    uid: str
    state: str
    accelerator: str
    begin: float = Field(description="Seconds since the epoch.")
    end: float
    known_s: float = Field(description="Seconds of that time in which it ran and was read.")
    step_s: int = Field(description="In what steps.")
    verdict: str = Field(description="One sentence: what cost it most, or that nothing did.")
    causes: tuple[Cause, ...] = Field(description="What cost most first; then what is not known.")
