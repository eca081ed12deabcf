"""Who gets how much of what there is not enough of: shares between a reservation and a limit. Pure.

Water-filling (C. Waldspurger, Memory Resource Management in VMware ESX Server, OSDI 2002; for limits of the
same kind: D. Bertsekas and R. Gallager, Data Networks, section 6.5.2): each gets level x shares, but never
less than its reservation nor more than its limit, and the level is where everything is given away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from innkeeper.spec.waterfill import Claim as Level
from innkeeper.spec.waterfill import fill

# What the host keeps: a twentieth of its CPUs, a quarter of one at least. The kernel's own threads, the
# daemon and who administers the host run on that when every VM is busy: with a tenth of a CPU for all of
# them together a host of two stood still for minutes.
KEPT_PART: Final = 0.05
KEPT_LEAST_MILLICORES: Final = 250


def kept_millicores(cpus: int) -> int:
    """What of this many CPUs is never promised to VMs."""
    return max(KEPT_LEAST_MILLICORES, round(cpus * 1000 * KEPT_PART))


@dataclass(frozen=True, slots=True)
class Claim:
    """What one wants at most is its `limit`; 0 <= reservation <= limit, shares > 0."""

    shares: float
    reservation: float
    limit: float


def entitlements(claims: Sequence[Claim], capacity: float) -> list[float]:
    """What each gets when all want as much as they may. The sum is the capacity, or all limits together if
    that is less. Reservations beyond the capacity, of a host that has become smaller, are cut in proportion.
    """
    reserved = sum(claim.reservation for claim in claims)
    if reserved >= capacity:
        return (
            [claim.reservation * capacity / reserved for claim in claims] if reserved else [0.0] * len(claims)
        )
    return fill(
        capacity, [Level(claim.reservation, claim.limit, base=0.0, slope=claim.shares) for claim in claims]
    )
