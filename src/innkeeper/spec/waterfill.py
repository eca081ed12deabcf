"""Dividing what there is among those who want it, each between a least and a most. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """At level x it gets `base + slope * x`, but never less than `least` nor more than `most`."""

    least: float
    most: float
    base: float
    slope: float  # above 0


def fill(supply: float, claims: Sequence[Claim]) -> list[float]:
    """What each gets, in the order of the claims, at the one level at which that adds up to `supply`. All
    have their least where it is too little for that, and their most where it is more than enough.

    Exact, in n log n: the sum is piecewise linear in the level, and bends where a claim reaches an end.
    """
    bends = sorted(
        bend
        for one in claims
        for bend in (
            ((one.least - one.base) / one.slope, one.slope),
            ((one.most - one.base) / one.slope, -one.slope),
        )
    )
    total, rate, level = math.fsum(one.least for one in claims), 0.0, -math.inf
    if supply <= total:
        return [one.least for one in claims]
    for bend, change in bends:
        grown = rate * (bend - level) if rate > 0 else 0.0
        if total + grown >= supply and rate > 0:
            level += (supply - total) / rate
            break
        total, rate, level = total + grown, rate + change, bend
    else:
        return [one.most for one in claims]
    return [min(one.most, max(one.least, one.base + one.slope * level)) for one in claims]
