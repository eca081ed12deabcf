"""Which limits hold a disk back just now. Pure.

QEMU does not tell how many requests wait for a limit. But where requests of the guest wait and the disk does
what a limit allows, no less and no more, it is that limit they wait for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from innkeeper.engine.throttle import Throttle

# So many looks, this far apart: together five times the 100 ms that QEMU's buckets even out.
LOOKS: Final = 6
BETWEEN_S: Final = 0.1
# Of a limit, what counts as all of it: buckets are emptied in steps.
_NEAR: Final = 0.1
# In so many of the looks requests must wait: between two of its requests even a busy guest has none.
_WAITING: Final = 0.5
_COUNTERS: Final = {"read": "rd", "write": "wr"}


@dataclass(frozen=True)
class Look:
    """One disk at one moment: QEMU's counters of it, and how many requests it has taken and not answered
    (None: QEMU cannot tell)."""

    stats: Mapping[str, Any]
    in_flight: int | None


def held_back_by(
    throttle: Throttle, looks: Sequence[Look], group: Sequence[tuple[Look, Look]], took_s: float
) -> list[str]:
    """Names of the limits, such as `total_ops`. `looks` are those at the disk; `group` the first and last of
    every disk that shares the limits, this one's too, with `took_s` seconds between them."""
    waited = [look.in_flight != 0 for look in looks]
    if sum(waited) < _WAITING * len(waited) or took_s <= 0:
        return []
    return list(_full(throttle.limits, group, took_s))


def _full(limits: Mapping[str, int], looks: Sequence[tuple[Look, Look]], took_s: float) -> Iterator[str]:
    for unit in ("bytes", "ops"):
        for direction in ("total", "read", "write"):
            name = f"{direction}_{unit}"
            if name not in limits:
                continue
            kinds = list(_COUNTERS.values()) if direction == "total" else [_COUNTERS[direction]]
            done, request = _done(looks, kinds, unit, limits.get("op_size"))
            allowed = [limits[name], limits.get(f"{name}_burst", limits[name])]
            # One request more or less, since each counts when it is done.
            if any(abs(done - one * took_s) <= _NEAR * one * took_s + request for one in allowed):
                yield name


def _done(
    looks: Sequence[tuple[Look, Look]], kinds: Sequence[str], unit: str, op_size: int | None
) -> tuple[float, float]:
    """How much was done between the looks, and how much of it is one request."""
    requests = sum(_more(pair, f"{kind}_operations") for pair in looks for kind in kinds)
    size = sum(_more(pair, f"{kind}_bytes") for pair in looks for kind in kinds)
    if unit == "bytes":
        return size, size / requests if requests else 0.0
    done = max(requests, size / op_size if op_size else 0)
    return done, done / requests if requests else 1.0


def _more(pair: tuple[Look, Look], name: str) -> int:
    return int(pair[1].stats.get(name, 0)) - int(pair[0].stats.get(name, 0))
