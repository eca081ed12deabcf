"""What is known of somebody in each step of a time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from innkeeper.agent.sampling.ring import Row

_NOTHING: Mapping[str, float] = {}


class Timeline:
    """Averages by step. All are read one after the other, so that the same reading may fall on both sides of
    a step's border: where one has no value for a step, that of the step beside it is taken."""

    def __init__(self, rows: Iterable[Row], step_s: int) -> None:
        self._rows = {int(row.at // step_s): row.average for row in rows}

    @property
    def stamps(self) -> tuple[int, ...]:
        return tuple(sorted(self._rows))

    def at(self, stamp: int) -> Mapping[str, float]:
        for near in (stamp, stamp - 1, stamp + 1):
            if near in self._rows:
                return self._rows[near]
        return _NOTHING

    def names(self) -> set[str]:
        return {name for row in self._rows.values() for name in row}


def mean(values: Sequence[float], weights: Sequence[float] = ()) -> float:
    """By `weights`, or the plain one where all of them are zero."""
    if not values:
        return 0.0
    most = max(weights, default=0.0)
    if most <= 0:
        return sum(values) / len(values)
    parts = [weight / most for weight in weights]  # products of tiny ones would lose their digits
    return sum(value * part for value, part in zip(values, parts, strict=True)) / sum(parts)


def known_mean(values: Sequence[float | None], weights: Sequence[float] = ()) -> float | None:
    """Of those that are known; None when none is."""
    if not weights:
        weights = [0.0] * len(values)
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    return mean([value for value, _ in pairs], [weight for _, weight in pairs]) if pairs else None
