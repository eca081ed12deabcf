"""Who takes part: the VM in question, the other VMs, the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from innkeeper.agent.attribution.timeline import Timeline
from innkeeper.spec.qos import Qos

# Why its vCPUs may run on some CPUs of the host only: it was asked to, or lies on some of its NUMA nodes.
Binding = Literal["", "pinned", "node"]

# As control/lifecycle.py has it: admission counts the promises of these.
_PROMISED: Final = frozenset({"starting", "running", "paused", "stopping", "hung"})

_AT_MOST: Final = 1.1  # times its limit: readings are not of quite the same moment


@dataclass(frozen=True, slots=True)
class DiskLimit:
    """What its disks may do a second: `what` is read_bytes, write_bytes, total_bytes, read_ops, write_ops or
    total_ops, `setting` where the specification says so, such as `qos.disk.total_ops`, `column` where the
    history has what they did of it. For a while they may go up to `burst`."""

    setting: str
    what: str
    most: float
    column: str = ""
    burst: float | None = None


@dataclass(frozen=True, slots=True)
class Party:
    """A VM, with what its specification says of the things that others may take from it."""

    name: str
    uid: str
    timeline: Timeline
    vcpus: int = 1
    memory_bytes: int = 0
    qos: Qos = field(default_factory=Qos)
    state: str = "running"
    accelerator: str = ""
    binding: Binding = ""
    host_cpus: frozenset[int] = frozenset()  # those it may run on; empty: any
    disks: bool = False  # it has at least one
    disk_limits: tuple[DiskLimit, ...] = ()

    def limit_at(self, row: Mapping[str, float]) -> float | None:
        """CPUs it could have at most in a step; None: as many as there are. It was not limited yet where no
        control group counted, or where it had more."""
        if self.qos.cpu.limit is None or "throttled" not in row:
            return None
        limit = self.qos.cpu.limit / 1000
        return limit if row.get("cpu", 0.0) <= _AT_MOST * limit else None

    @property
    def holds_promises(self) -> bool:
        """What is reserved for it nobody else can reserve."""
        return self.state in _PROMISED


@dataclass(frozen=True, slots=True)
class HostParty:
    """`no_cpu_qos`: why it can hold no VM to shares, reservations and limits of CPU time; empty: it can."""

    timeline: Timeline
    cpus: int
    memory_bytes: int
    no_cpu_qos: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """All of them, and the time it is about (seconds since the epoch)."""

    victim: Party
    others: tuple[Party, ...]
    host: HostParty
    begin: float
    end: float
    step_s: int

    @property
    def on_its_cpus(self) -> tuple[Party, ...]:
        """It, and those that may run on a CPU that it may run on."""
        mine = self.victim.host_cpus
        rivals = (one for one in self.others if not mine or not one.host_cpus or mine & one.host_cpus)
        return (self.victim, *rivals)

    @property
    def everybody(self) -> tuple[Party, ...]:
        return (self.victim, *self.others)
