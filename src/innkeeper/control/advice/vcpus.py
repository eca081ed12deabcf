"""How many vCPUs: requirement C6, on what the VM would use of an empty host. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from innkeeper.control.advice import thresholds as T
from innkeeper.control.advice.evidence import (
    Bucket,
    Evidence,
    Said,
    advised,
    duration,
    highest,
    mean,
    of_size,
    percent,
)
from innkeeper.spec.advice import Advice, TrialState, Withheld
from innkeeper.spec.cpu import MAX_VCPUS
from innkeeper.units import format_cores

_GIVEN = "given_cpus"


@dataclass(frozen=True, slots=True)
class CpuUse:
    """`average` and `peak` in CPUs, waiting for a CPU included; `wait` and `throttled` are shares of each
    vCPU's time, `busiest` of all the work."""

    cpus: int
    average: float
    peak: float
    wait: float
    throttled: float
    busiest: float | None
    capped: float
    busy_readings: int

    @property
    def average_share(self) -> float:
        return min(1.0, self.average / self.cpus)

    @property
    def peak_share(self) -> float:
        return min(1.0, self.peak / self.cpus)

    @property
    def single_threaded(self) -> bool:
        """The peak is one CPU's worth, and that by one thread, whether it stays on a vCPU or moves."""
        low, high = T.ONE_CPU
        if self.cpus < 2 or self.busy_readings < T.BUSY_READINGS or not low <= self.peak <= high:
            return False
        return (self.busiest is not None and self.busiest >= T.ALONE) or self.capped >= T.CAPPED


def use_of(rows: Sequence[Bucket], cpus: int) -> CpuUse | None:
    """None when nothing of it is known."""
    average, peak = mean(rows, "demand"), highest(rows, "demand")
    if average is None or peak is None:
        return None
    busy = [row for row in rows if row.peak.get("demand", 0.0) >= T.BUSY_READING]
    work = sum(row.average.get("demand", 0.0) for row in busy)
    alone = sum(row.average.get("busiest", 0.0) for row in busy)
    low, high = T.ONE_CPU
    capped = sum(low <= row.peak["demand"] <= high for row in busy)
    return CpuUse(
        cpus=cpus,
        average=average,
        peak=peak,
        wait=(mean(rows, "wait") or 0.0) / cpus,
        throttled=min(1.0, mean(rows, "throttled") or 0.0),
        busiest=alone / work if work else None,
        capped=capped / len(busy) if busy else 0.0,
        busy_readings=len(busy),
    )


def step(cpus: int) -> int:
    return max(1, cpus // T.STEP_PART)


def vcpus(evidence: Evidence) -> Said:
    """One line: fewer, more, another limit, or why none of these."""
    cpus = evidence.status.cpus
    rows = evidence.of_size(_GIVEN, cpus) if cpus else ()
    use = use_of(rows, cpus) if rows else None
    if use is None or not evidence.enough(rows):
        return [evidence.too_little("cpu", rows)]
    if use.throttled >= T.THROTTLED:
        return [_limited(evidence, use, rows)]
    if use.single_threaded:
        return [_one_is_enough(evidence, use, rows)]
    if cpus > 1 and use.average_share < T.FEWER_AVERAGE and use.peak_share < T.FEWER_PEAK:
        return [_fewer(evidence, use, rows)]
    if use.average_share > T.MORE_AVERAGE and use.peak_share > T.MORE_PEAK:
        return [_more(evidence, use, rows)]
    return [Withheld(kind="cpu", reason="fits", what=f"{_vcpus(cpus)} fit: {_seen(evidence, use, rows)}")]


def _one_is_enough(evidence: Evidence, use: CpuUse, rows: Sequence[Bucket]) -> Advice | Withheld:
    if tried := evidence.tried("cpu", "single-threaded", "idle"):
        return tried
    by = f", {percent(use.busiest)} of the work on one vCPU" if use.busiest is not None else ""
    return advised(
        evidence,
        "cpu",
        "single-threaded",
        {"cpu.count": 1},
        what=f"1 vCPU instead of {use.cpus}: the load is single-threaded",
        seen=f"{_seen(evidence, use, rows)}; at its peak {use.peak:.2f} CPUs, near 1/{use.cpus} of its "
        f"{_vcpus(use.cpus)}{by}",
        effect=f"the same work on one vCPU; {_freed(evidence, use.cpus, 1)}",
    )


def _fewer(evidence: Evidence, use: CpuUse, rows: Sequence[Bucket]) -> Advice | Withheld:
    if tried := evidence.tried("cpu", "single-threaded", "idle"):
        return tried
    count = use.cpus - step(use.cpus)
    return advised(
        evidence,
        "cpu",
        "idle",
        {"cpu.count": count},
        what=f"{_vcpus(count)} instead of {use.cpus}",
        seen=f"{_seen(evidence, use, rows)}; below {percent(T.FEWER_AVERAGE)} and {percent(T.FEWER_PEAK)}",
        effect=f"at its peak {percent(min(1.0, use.peak / count))} of {count}; "
        f"{_freed(evidence, use.cpus, count)}",
    )


def _more(evidence: Evidence, use: CpuUse, rows: Sequence[Bucket]) -> Advice | Withheld:
    said = _seen(evidence, use, rows)
    if why := _of_no_use(evidence, use):
        return Withheld(kind="cpu", reason=why[0], what=f"{said}; but {why[1]}")
    count = min(use.cpus + step(use.cpus), MAX_VCPUS, evidence.host.cpus if evidence.host else MAX_VCPUS)
    change: dict[str, object] = {"cpu.count": count}
    if evidence.spec.cpu.max is not None and count > evidence.spec.cpu.max:
        change = {"cpu.max": count, **change}
    least = evidence.spec.qos.cpu.limit
    limited = f"; its limit of {format_cores(least)} cores holds for all of them" if least else ""
    return advised(
        evidence,
        "cpu",
        "busy",
        change,
        what=f"{_vcpus(count)} instead of {use.cpus}",
        seen=f"{said}; above {percent(T.MORE_AVERAGE)} and {percent(T.MORE_PEAK)}",
        effect=f"up to {count - use.cpus} CPU{'s' if count - use.cpus > 1 else ''} more of work; "
        f"{_cost(evidence, count - use.cpus)}{limited}",
    )


def _of_no_use(evidence: Evidence, use: CpuUse) -> tuple[str, str] | None:
    """Why more vCPUs would not help one that is busy."""
    if use.wait >= T.CONTENDED:
        return "contended", (
            f"its vCPUs wait for a CPU of the host {percent(use.wait)} of the time: more would wait more; "
            f"inn top --why {evidence.name} says for whom"
        )
    if evidence.host is not None and use.cpus >= evidence.host.cpus:
        return "host", f"it has as many vCPUs as the host has CPUs ({evidence.host.cpus})"
    if tried := evidence.tried("cpu", "busy"):
        return tried.reason, tried.what
    if evidence.runnable is not None and evidence.runnable <= T.QUEUED * use.cpus:
        return "parallelism", (
            f"nothing waits for a vCPU in its guest: {evidence.runnable:.1f} runnable tasks on "
            f"{_vcpus(use.cpus)}"
        )
    if more := _once_had_more(evidence, use.cpus):
        return "parallelism", more
    return None


def _once_had_more(evidence: Evidence, cpus: int) -> str:
    """What it did when it had more of them, as far as that is kept."""
    sizes = {round(row.average.get(_GIVEN, 0.0)) for row in evidence.earlier}
    for size in sorted(size for size in sizes if size > cpus):
        rows = of_size(evidence.earlier, _GIVEN, size)
        use = use_of(rows, size)
        if use is None or len(rows) * evidence.earlier_step_s < evidence.min_data_s:
            continue
        if use.single_threaded and cpus == 1:
            return f"with {_vcpus(size)} it used {use.peak:.2f} CPUs at most: one thread does the work"
    for trial in evidence.trials:
        recent = evidence.now - trial.ended_at < T.REMEMBERED_S
        if trial.reason == "single-threaded" and trial.state is TrialState.KEPT and recent and cpus == 1:
            ago = duration(evidence.now - trial.ended_at)
            return f"with more of them one thread did the work (tried {ago} ago)"
    return ""


def _limited(evidence: Evidence, use: CpuUse, rows: Sequence[Bucket]) -> Advice | Withheld:
    seen = f"its CPU limit held it {percent(use.throttled)} of the time; {_seen(evidence, use, rows)}"
    limit = evidence.spec.qos.cpu.limit
    if limit is None:
        return Withheld(
            kind="cpu", reason="host", what=f"{seen}; the limit is not the VM's own (qos.cpu.limit)"
        )
    raised = min(round(limit * T.RAISE_LIMIT), use.cpus * 1000)
    if raised <= limit:
        return Withheld(
            kind="cpu", reason="fits", what=f"{seen}; the limit is all that its {_vcpus(use.cpus)} can use"
        )
    if tried := evidence.tried("cpu", "limited"):
        return tried
    return advised(
        evidence,
        "cpu",
        "limited",
        {"qos.cpu.limit": format_cores(raised)},
        what=f"a limit of {format_cores(raised)} cores instead of {format_cores(limit)}",
        seen=seen,
        effect=f"up to {format_cores(raised - limit)} cores more, which others then lack",
    )


def _seen(evidence: Evidence, use: CpuUse, rows: Sequence[Bucket]) -> str:
    return (
        f"average {percent(use.average_share)}, peak {percent(use.peak_share)} of {_vcpus(use.cpus)} "
        f"in {duration(evidence.seconds(rows))}"
    )


def _vcpus(count: int) -> str:
    return f"{count} vCPU{'' if count == 1 else 's'}"


def _freed(evidence: Evidence, before: int, after: int) -> str:
    if evidence.host is None:
        return "less to schedule for the host"
    total = evidence.vcpus + after - before
    return f"the host's running VMs have {_vcpus(total)} then, on {evidence.host.cpus} CPUs"


def _cost(evidence: Evidence, more: int) -> str:
    """C6: the host's vCPU total within its cores, or what it costs."""
    if evidence.host is None:
        return "what it costs other VMs is not known"
    total, cpus = evidence.vcpus + more, evidence.host.cpus
    if total <= cpus:
        return f"the host's running VMs have {_vcpus(total)} then, on {cpus} CPUs"
    return (
        f"it costs: {_vcpus(total)} on {cpus} CPUs then, so when all are busy each gets "
        f"{percent(cpus / total)} of a CPU"
    )
