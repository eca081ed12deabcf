"""Which disks are held by the limits of their rates. Pure.

QEMU does not count how long it holds requests back: waiting for a limit is part of how long they take. So a
disk counts as held while what it does is as much as a limit allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from innkeeper.agent.sampling.rates import OneDiskRate
from innkeeper.spec.diskqos import RATES, LimitsInForce

# Rates are averages over some seconds, in which a held disk does a little less than it may.
AT_LIMIT: Final = 0.9


@dataclass(frozen=True, slots=True)
class Limits:
    """A second, by what is limited: read_bytes, write_bytes, total_bytes, read_ops, write_ops, total_ops.
    `disks` have them together, `shared` with all that have none of their own. `bursts`: what of that may be
    for a while. A request larger than `op_size` bytes counts as several; 0: each is one."""

    disks: frozenset[str]
    most: Mapping[str, float] = field(default_factory=dict)
    bursts: Mapping[str, float] = field(default_factory=dict)
    op_size: int = 0
    shared: bool = False

    def column(self, what: str) -> str:
        """Of the history: what they did of that."""
        return f"disk_did:{'' if self.shared else next(iter(self.disks), '')}.{what}"

    def did(self, disks: Iterable[OneDiskRate]) -> dict[str, float]:
        members = [disk for disk in disks if disk.name in self.disks]
        return {self.column(what): done(members, what, self.op_size) for what in self.most}


def in_force(limits: Mapping[str, LimitsInForce | None]) -> tuple[Limits, ...]:
    """What the disks of a VM are held to now, each set of limits once."""
    shared = frozenset(name for name, one in limits.items() if one is not None and one.shared)
    found = {}
    for name, one in limits.items():
        if one is not None:
            most = {what: float(value) for what in RATES if (value := getattr(one, what)) is not None}
            disks = shared if one.shared else frozenset({name})
            bursts = {what: float(burst) for what in most if (burst := one.of(what)[1]) is not None}
            found[disks] = Limits(disks, most, bursts, one.op_size or 0, one.shared)
    return tuple(found.values())


def done(disks: Iterable[OneDiskRate], what: str, op_size: int = 0) -> float:
    """What disks did of that together, as QEMU counts it for their limits: it holds back no flushes."""
    direction, _, unit = what.partition("_")
    directions = ("read", "write") if direction == "total" else (direction,)
    total = 0.0
    for one in disks:
        for each in directions:
            did = getattr(one, f"{each}_{unit}")
            if unit == "ops" and op_size:
                did = max(did, getattr(one, f"{each}_bytes") / op_size)
            total += did
    return total


def held(disks: Iterable[OneDiskRate], limits: Iterable[Limits]) -> frozenset[str]:
    """The disks at a limit."""
    known = tuple(disks)
    found: set[str] = set()
    for one in limits:
        members = [disk for disk in known if disk.name in one.disks]
        if any(done(members, what, one.op_size) >= AT_LIMIT * most for what, most in one.most.items()):
            found |= {disk.name for disk in members}
    return frozenset(found)
