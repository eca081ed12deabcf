"""Disk limits that hold a VM back: its rates lie at the limit for a good part of the time. Pure.

The history adds up all disks of a VM, so a limit can be judged that holds for all of them together, or that
of the only disk there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from innkeeper.control.advice import thresholds as T
from innkeeper.control.advice.evidence import Bucket, Evidence, Said, advised, duration, percent
from innkeeper.spec.advice import Withheld
from innkeeper.spec.diskqos import DiskLimits
from innkeeper.units import format_ops, format_rate

# Field of the limits -> what of the history adds up to it.
RATES: Final[Mapping[str, tuple[str, ...]]] = {
    "total_bytes": ("disk_read", "disk_write"),
    "read_bytes": ("disk_read",),
    "write_bytes": ("disk_write",),
    "total_ops": ("disk_read_ops", "disk_write_ops"),
    "read_ops": ("disk_read_ops",),
    "write_ops": ("disk_write_ops",),
}


@dataclass(frozen=True, slots=True)
class DiskLimit:
    """`path`: of the field in the spec; `rate`: which of `RATES`; `limit`: a second."""

    path: str
    rate: str
    limit: int
    burst: bool = False

    @property
    def unit(self) -> str:
        return self.rate.rpartition("_")[2]

    def shown(self, value: float) -> str:
        """As the spec takes it."""
        return format_rate(round(value)) if self.unit == "bytes" else format_ops(round(value))


def limits_of(limits: DiskLimits, path: str) -> Iterator[DiskLimit]:
    for rate in RATES:
        limit, burst, _ = limits.of(rate)
        if limit is not None:
            yield DiskLimit(f"{path}.{rate}", rate, limit, burst=burst is not None)


def disk(evidence: Evidence) -> Said:
    """One line for each limit that can be judged."""
    own = [(place, one.qos) for place, one in enumerate(evidence.spec.disks) if one.qos]
    found: Said = []
    judged: list[DiskLimit] = []
    alone = len(evidence.status.disk_limits) == 1
    for place, limits in own:
        if alone:
            judged += limits_of(limits, f"disks.{place}.qos")
        else:
            name = evidence.spec.disks[place].name
            said = (
                f"disk {name} has limits of its own, and the history adds up all disks: see inn inspect disk"
            )
            found.append(Withheld(kind="disk", reason="unknown", what=f"{said} {evidence.name}"))
    if not own:
        judged += limits_of(evidence.spec.qos.disk, "qos.disk")
    rows = [row for row in evidence.buckets if "disk_read" in row.average]
    if judged and not evidence.enough(rows):
        return [*found, evidence.too_little("disk", rows)]
    for limit in judged:
        found += _judged(evidence, rows, limit)
    return found


def _judged(evidence: Evidence, rows: Sequence[Bucket], limit: DiskLimit) -> Said:
    used = [sum(row.average.get(name, 0.0) for name in RATES[limit.rate]) for row in rows]
    at_limit = sum(value >= T.AT_LIMIT * limit.limit for value in used) / len(used)
    seen = (
        f"{limit.rate} at {percent(T.AT_LIMIT)} of its limit of {limit.shown(limit.limit)} or more "
        f"{percent(at_limit)} of {duration(evidence.seconds(rows))}"
    )
    if at_limit < T.THROTTLED_TIME:
        return [Withheld(kind="disk", reason="fits", what=f"{limit.path} fits: {seen}")]
    if limit.burst:
        return [
            Withheld(
                kind="disk",
                reason="unknown",
                what=f"{seen}; it has a burst to be chosen with it: {limit.path}",
            )
        ]
    if tried := evidence.tried("disk", "throttled"):
        return [tried]
    raised = round(limit.limit * T.RAISE_DISK)
    return [
        advised(
            evidence,
            "disk",
            "throttled",
            {limit.path: limit.shown(raised)},
            what=f"a limit of {limit.shown(raised)} instead of {limit.shown(limit.limit)} ({limit.path})",
            seen=seen,
            effect=f"up to {T.RAISE_DISK:g} times the {limit.unit} a second, where the host's disk has them; "
            "others on it may get less",
        )
    ]
