"""What a VM is owed of CPU time, and how that changes its weight. Pure.

The scheduler divides a group's weight among the host's CPUs by the load it finds there. Under Linux 6.18 two
groups of weights 2:1, each of two threads that never rest and one that wakes 700 times a second (that is a VM
under TCG), were seen to get from 1:1 to 3:1, and one of eight twice its part (docs/benchmarks.md). So what
each VM really got is looked at while VMs wait for each other, and what it is owed goes into its weight: an
integral controller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from innkeeper.spec.sharing import Claim, entitlements

# How often, while they wait for each other. Of 2, 1 and 0.5 s this one kept parts best (within a percent
# over 10 s), and looking at a busy VM costs some 0.1 ms.
INTERVAL_S: Final = 0.5
# So much is owed at most, in seconds of what the VM should have: for longer nobody makes up.
OWED_MOST_S: Final = 2.0
FACTOR_LEAST: Final = 0.25
FACTOR_MOST: Final = 4.0
# Of a CPU, for all of them: less waiting than this is no contention.
WAITED_LEAST: Final = 0.1


@dataclass(frozen=True, slots=True)
class Use:
    """Of one VM in some time, in cores: what it had, and for what it waited with the CPUs taken by others."""

    used: float
    waited: float

    @property
    def is_starved(self) -> bool:
        return self.waited > max(self.used, WAITED_LEAST)


def step(
    owed: Mapping[str, float], uses: Mapping[str, Use], claims: Mapping[str, Claim], took_s: float
) -> dict[str, float]:
    """What each VM is owed now, in seconds of its part; below 0 it had too much. Nobody can have wanted more
    than it used and waited for; what all had together is divided anew among those wishes, by shares. One that
    had all it wanted is owed nothing for long."""
    uids = [uid for uid in uses if uid in claims]
    wanted = [_wanted(claims[uid], uses[uid]) for uid in uids]
    parts = entitlements(wanted, sum(uses[uid].used for uid in uids))
    found = {}
    for uid, part, most in zip(uids, parts, wanted, strict=True):
        before = owed.get(uid, 0.0)
        if part <= 0 or part >= most.limit * 0.999:
            before /= 2
        missing = (part - uses[uid].used) / part * took_s if part > 0 else 0.0
        found[uid] = min(max(before + missing, -OWED_MOST_S), OWED_MOST_S)
    return found


def _wanted(claim: Claim, use: Use) -> Claim:
    most = max(use.used, min(claim.limit, use.used + use.waited))
    return Claim(claim.shares, min(claim.reservation, most), most)


def factor(owed_s: float, took_s: float) -> float:
    """Of a weight: what is owed is made up within one interval, or one as long as the last where that was
    longer, on a host too busy to look as often. Made up faster than it is looked at, it would swing."""
    return min(max(1 + owed_s / max(took_s, INTERVAL_S), FACTOR_LEAST), FACTOR_MOST)


def contended(uses: Iterable[Use]) -> bool:
    """Do two at least wait for each other?"""
    known = list(uses)
    return len(known) > 1 and sum(use.waited for use in known) > WAITED_LEAST
