"""A series of measurements under one name, and the budget it is held against."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Budget:
    """The limit of a sample's median: `limit`, in its unit, or `limit` times the median of the sample
    named `of`, measured in the same run."""

    limit: float
    of: str = ""
    at_least: bool = False

    def text(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.limit:g}" + (f" x {self.of}" if self.of else "")


@dataclass(frozen=True)
class Sample:
    """`name` is BENCHMARK.WHAT; `note` says what a reader of the number must know."""

    name: str
    unit: str
    values: Sequence[float]
    budget: Budget | None = None
    note: str = ""

    @property
    def p50(self) -> float:
        return median(self.values) if self.values else math.nan

    @property
    def p99(self) -> float:
        """The smallest value that 99 % do not exceed: with fewer than 100 of them, the largest."""
        if not self.values:
            return math.nan
        return sorted(self.values)[math.ceil(len(self.values) * 0.99) - 1]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "values": [round(value, 4) for value in self.values]}


@dataclass(frozen=True)
class Verdict:
    """`text` is empty without a budget; `ratio` is measured / peer for a budget that names one."""

    text: str = ""
    ratio: float | None = None


def judge(sample: Sample, all_samples: Mapping[str, Sample]) -> Verdict:
    """Whether the median is within its budget. A peer that was not measured judges nothing."""
    budget = sample.budget
    if budget is None or not sample.values:
        return Verdict()
    if not budget.of:
        return Verdict(_word(sample.p50, budget.limit, budget.at_least))
    peer = all_samples.get(budget.of)
    if peer is None or not peer.values:
        return Verdict("no peer")
    ratio = sample.p50 / peer.p50
    return Verdict(_word(ratio, budget.limit, budget.at_least), ratio)


def _word(value: float, limit: float, at_least: bool) -> str:
    return "met" if (value >= limit if at_least else value <= limit) else "MISSED"


def timed_ms(work: Callable[[], object]) -> float:
    """How long one call takes, in milliseconds."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def interleave(count: int, works: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """`count` rounds of every work in turn, so that a noisy neighbour hits all alike. Each round begins
    with another one. What a work returns is its value."""
    values: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(count):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            values[name].append(works[name]())
    return values
