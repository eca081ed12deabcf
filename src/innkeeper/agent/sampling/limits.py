"""Which disks are held by the limits of their rates. Pure.

QEMU does not count how long it holds requests back: waiting for a limit is part of how long they take. So a
disk counts as held while what it does is as much as a limit allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from innkeeper.agent.sampling.rates import OneDiskRate

# Rates are averages over some seconds, in which a held disk does a little less than it may.
AT_LIMIT: Final = 0.9


@dataclass(frozen=True, slots=True)
class Limits:
    """A second, by what is limited: read_bytes, write_bytes, total_bytes, read_ops, write_ops, total_ops.
    `disks` have them together; `setting` is where the specification says so."""

    setting: str
    disks: frozenset[str]
    most: Mapping[str, float] = field(default_factory=dict)


def done(disks: Iterable[OneDiskRate], what: str) -> float:
    """What disks did of that together. QEMU holds back no flushes."""
    direction, _, unit = what.partition("_")
    directions = ("read", "write") if direction == "total" else (direction,)
    return float(sum(getattr(one, f"{each}_{unit}") for one in disks for each in directions))


def held(disks: Iterable[OneDiskRate], limits: Iterable[Limits]) -> frozenset[str]:
    """The disks at a limit."""
    known = tuple(disks)
    found: set[str] = set()
    for one in limits:
        members = [disk for disk in known if disk.name in one.disks]
        if any(done(members, what) >= AT_LIMIT * most for what, most in one.most.items()):
            found |= {disk.name for disk in members}
    return frozenset(found)
