"""What the rules decide by: the history of one VM as buckets, and what is known of it and its host now. Pure.

Readings of another size are of another VM: only buckets with as many vCPUs (or as much memory) as it has now
count. So the time since the last change is all there is to go by, and the least amount of data a rule wants
is its cool-down as well - whoever changed it, also after a restart of the daemon.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, cast

from innkeeper.control.advice.thresholds import REFUSED_S, REMEMBERED_S, SAME
from innkeeper.spec.advice import Advice, Kind, Trial, TrialState, Withheld
from innkeeper.spec.differences import differences
from innkeeper.spec.host import HostFacts
from innkeeper.spec.instance import InstanceSpec, InstanceStatus
from innkeeper.spec.livechange import effects
from innkeeper.spec.metrics import History, InstanceMetrics

Said = list[Advice | Withheld]

# What the rules and the judge of trials read: a day of everything else is not even looked up.
AVERAGES: Final = frozenset(
    {
        "given_cpus", "demand", "busiest", "wait", "throttled", "cpu", "given_memory", "working_set",
        "balloon", "guest_swap_in", "resident", "swapped", "major_faults", "refaults", "disk_read",
        "disk_write", "disk_read_ops", "disk_write_ops", "pressure_cpu", "pressure_memory", "pressure_io",
    }
)  # fmt: skip
PEAKS: Final = frozenset({"demand", "working_set"})


@dataclass(frozen=True, slots=True)
class Bucket:
    """`at`: when it began, seconds since the epoch. Values as in docs/howto/monitoring.md."""

    at: float
    average: Mapping[str, float]
    peak: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Of one VM that runs. `runnable`: tasks that run or would like to, as its guest counts them; `vcpus`:
    of all running VMs of its host together. None is "not known"."""

    name: str
    spec: InstanceSpec
    status: InstanceStatus
    now: float
    window_s: float
    min_data_s: float
    step_s: float
    buckets: tuple[Bucket, ...]  # of the window
    earlier: tuple[Bucket, ...] = ()  # of all that is kept
    earlier_step_s: float = 60.0
    host: HostFacts | None = None
    vcpus: int = 0
    seen: InstanceMetrics | None = None
    runnable: float | None = None
    least_memory: int = 0  # what its image needs
    trials: tuple[Trial, ...] = ()

    def of_size(self, given: str, size: float) -> tuple[Bucket, ...]:
        """Those of the window in which it had what it has now."""
        return of_size(self.buckets, given, size)

    def enough(self, rows: Sequence[Bucket]) -> bool:
        return self.seconds(rows) >= self.min_data_s

    def seconds(self, rows: Sequence[Bucket]) -> float:
        return len(rows) * self.step_s

    def too_little(self, kind: Kind, rows: Sequence[Bucket]) -> Withheld:
        said = f"{duration(self.seconds(rows))} of the {duration(self.min_data_s)} wanted"
        return Withheld(kind=kind, reason="data", what=f"not enough data since it is as it is: {said}")

    def rejected(self, kind: Kind, reasons: Sequence[str]) -> Trial | None:
        """The last trial of such a change, if it did not work and that still counts."""
        for trial in reversed(self.trials):
            if trial.kind == kind and trial.reason in reasons and not trial.is_open:
                holds_s = _HOLDS_S.get(trial.state, 0.0)
                return trial if self.now - trial.ended_at < holds_s else None
        return None

    def tried(self, kind: Kind, *reasons: str) -> Withheld | None:
        """Why not to advise what did not work a while ago."""
        trial = self.rejected(kind, reasons)
        if trial is None:
            return None
        ago = duration(self.now - trial.ended_at)
        return Withheld(kind=kind, reason="tried", what=f"{trial.what}: tried {ago} ago, {trial.outcome}")


_HOLDS_S = {
    TrialState.REVERTED: REMEMBERED_S,
    TrialState.STUCK: REMEMBERED_S,
    TrialState.REFUSED: REFUSED_S,
}


def buckets_of(history: History, since: float = 0.0) -> tuple[Bucket, ...]:
    """The rows of a history, those that begin at `since` or later."""
    rows = map(Bucket, history.times, _rows(history.average), _rows(history.peak))
    return tuple(row for row in rows if row.at >= since)


def _rows(columns: Mapping[str, tuple[float | None, ...]]) -> Iterator[dict[str, float]]:
    if not columns:
        return repeat({})
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for name, column in columns.items():
        if None in column:
            for row, value in zip(rows, column, strict=True):
                if value is None:
                    del row[name]
    return iter(cast("list[dict[str, float]]", rows))


def of_size(rows: Iterable[Bucket], given: str, size: float) -> tuple[Bucket, ...]:
    """Those in which it had as much as that."""
    rows = tuple(rows)
    sizes = {one for one in {row.average.get(given) for row in rows} if same(one, size)}
    return tuple(row for row in rows if row.average.get(given) in sizes)


def same(one: float | None, other: float) -> bool:
    return one is not None and abs(one - other) <= SAME * max(abs(one), abs(other))


def mean(rows: Sequence[Bucket], name: str) -> float | None:
    """Of those that have it; None if none has."""
    values = [row.average[name] for row in rows if name in row.average]
    return sum(values) / len(values) if values else None


def highest(rows: Sequence[Bucket], name: str) -> float | None:
    return max((row.peak[name] for row in rows if name in row.peak), default=None)


def percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def duration(seconds: float) -> str:
    """In one unit: `45 s`, `30 min`, `24 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def with_changes(spec: InstanceSpec, change: Mapping[str, object]) -> InstanceSpec:
    """The spec with these fields, by path. Raises ValueError for what makes no spec; pydantic's is one."""
    fields = spec.model_dump(mode="json")
    for path, value in change.items():
        *parents, last = path.split(".")
        place: Any = fields
        try:
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place[part]
            place[last] = value
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"there is no field {path}") from None
    return InstanceSpec.model_validate(fields)


def liveness(evidence: Evidence, change: Mapping[str, object]) -> str:
    """ "" if a running VM takes it up at once, else why not before its next start. Raises ValueError for what
    makes no spec."""
    after = with_changes(evidence.spec, change)
    later = effects(tuple(differences(evidence.spec, after)), after, evidence.status).later
    for why in later.values():
        return why or "only at a start"
    return ""


def command(name: str, change: Mapping[str, object]) -> str:
    """The `inn set` that makes it, ready for a shell."""
    words = []
    for path, value in change.items():
        if isinstance(value, Mapping):
            words += [f"{path}.{key}={one}" for key, one in value.items()]
        else:
            words.append(f"{path}={value}")
    return f"inn set {name} {' '.join(words)}"


def advised(
    evidence: Evidence,
    kind: Kind,
    reason: str,
    change: Mapping[str, object],
    *,
    what: str,
    seen: str,
    effect: str,
) -> Advice | Withheld:
    """The advice, unless it would make a spec that cannot be."""
    try:
        why = liveness(evidence, change)
    except ValueError as error:
        return Withheld(kind=kind, reason="capacity", what=f"{seen}; but not possible: {first_line(error)}")
    return Advice(
        kind=kind,
        reason=reason,
        what=what,
        evidence=seen,
        effect=effect,
        command=command(evidence.name, change),
        change=dict(change),
        live=not why,
        why_not_live=why,
    )


def first_line(error: ValueError) -> str:
    """Of pydantic's report what the first problem is."""
    problems = getattr(error, "errors", None)
    text = str(problems()[0]["msg"]) if callable(problems) else str(error)
    return " ".join(text.removeprefix("Value error, ").split())
