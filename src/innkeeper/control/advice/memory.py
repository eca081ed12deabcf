"""How much memory: by the guest's working set, what it swaps, and what the host swaps of it. Pure.

The working set is what the guest says it could not do without (balloon statistics: total less available). A
guest that says nothing gets no advice on its size: resident memory tells what it ever touched, not what it
needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from innkeeper.control.advice import thresholds as T
from innkeeper.control.advice.evidence import (
    Bucket,
    Evidence,
    Said,
    advised,
    duration,
    highest,
    mean,
    percent,
)
from innkeeper.spec.advice import Advice, Withheld
from innkeeper.spec.memory import BLOCK_BYTES, MAX_BYTES, MIN_BYTES
from innkeeper.units import MiB, format_size, human_size

_GIVEN = "given_memory"
_RESERVE_STEP = 32 * MiB


def memory(evidence: Evidence) -> Said:
    """What the host takes from it, and one line on its size."""
    size = evidence.status.memory.size
    rows = evidence.of_size(_GIVEN, size) if size else ()
    if not rows or not evidence.enough(rows):
        return [evidence.too_little("memory", rows)]
    found: Said = []
    if swapped := _swapped_by_the_host(evidence, rows, size):
        found.append(swapped)
    found.append(_size(evidence, rows, size))
    return found


def _size(evidence: Evidence, rows: Sequence[Bucket], size: int) -> Advice | Withheld:
    rows = [row for row in rows if "working_set" in row.average]
    average, peak = mean(rows, "working_set"), highest(rows, "working_set")
    if average is None or peak is None:
        return Withheld(
            kind="memory",
            reason="unknown",
            what="its working set is not known: its guest gives no balloon statistics",
        )
    if not evidence.enough(rows):
        return evidence.too_little("memory", rows)
    swap_in = mean(rows, "guest_swap_in") or 0.0
    span = duration(evidence.seconds(rows))
    seen = (
        f"working set {human_size(average)} on average, {human_size(peak)} at its peak, "
        f"{percent(peak / size)} of {format_size(size)} in {span}"
    )
    if swap_in > T.SWAPPING_IN_BYTES:
        seen = f"its guest swaps in {human_size(swap_in)}/s; {seen}"
        left = mean(rows, "balloon")
        if left is not None and left < T.SQUEEZED * size:
            seen = f"its balloon leaves it {human_size(left)} of {format_size(size)}; {seen}"
            return _reserved(evidence, "squeezed", peak, size, seen)
        return _more(evidence, size, "swapping", seen)
    if average > T.FULL * size:
        return _more(evidence, size, "full", f"{seen}; above {percent(T.FULL)}")
    if peak < T.ROOMY * size:
        return _less(evidence, size, peak, f"{seen}; below {percent(T.ROOMY)}")
    return Withheld(kind="memory", reason="fits", what=f"{format_size(size)} fit: {seen}")


def _more(evidence: Evidence, size: int, reason: str, seen: str) -> Advice | Withheld:
    if tried := evidence.tried("memory", "swapping", "full"):
        return tried
    step = evidence.status.memory.step or _round(evidence)
    more = max(step, size // T.MEMORY_STEP_PART // step * step)
    available = evidence.host.memory_available_bytes if evidence.host else None
    if available is not None and more > available:
        return Withheld(
            kind="memory",
            reason="capacity",
            what=f"{seen}; but the host has {human_size(available)} available for {human_size(more)} more",
        )
    wanted = min(size + more, MAX_BYTES)
    change: dict[str, object] = {"memory.size": format_size(wanted)}
    if evidence.spec.memory.max is not None and wanted > evidence.spec.memory.max:
        change = {"memory.max": format_size(wanted), **change}
    return advised(
        evidence,
        "memory",
        reason,
        change,
        what=f"{format_size(wanted)} of memory instead of {format_size(size)}",
        seen=seen,
        effect=f"room for {human_size(more)} more in the guest; the host has that much less for others",
    )


def _less(evidence: Evidence, size: int, peak: float, seen: str) -> Advice | Withheld:
    """A small step down: to what leaves headroom over the largest working set, in whole modules."""
    if tried := evidence.tried("memory", "roomy"):
        return tried
    step = evidence.status.memory.step or _round(evidence)
    least = max(
        MIN_BYTES,
        evidence.least_memory,
        round(peak * T.HEADROOM),
        size - max(step, size // T.MEMORY_STEP_PART),
    )
    fewer = (size - least) // step
    wanted = size - fewer * step
    if fewer < 1:
        return Withheld(
            kind="memory",
            reason="fits",
            what=f"{seen}; a step of {human_size(step)} less would leave too little beside that",
        )
    return advised(
        evidence,
        "memory",
        "roomy",
        {"memory.size": format_size(wanted)},
        what=f"{format_size(wanted)} of memory instead of {format_size(size)}",
        seen=seen,
        effect=f"{human_size(size - wanted)} for others; the largest working set seen is "
        f"{percent(peak / wanted)} of the rest",
    )


def _round(evidence: Evidence) -> int:
    """The step of one that cannot change while it runs: what is easily read, and whole huge pages."""
    return max(
        evidence.spec.memory.page_bytes, BLOCK_BYTES if evidence.spec.memory.size > 1024 * MiB else 32 * MiB
    )


def _swapped_by_the_host(evidence: Evidence, rows: Sequence[Bucket], size: int) -> Advice | Withheld | None:
    swapped, faults = mean(rows, "swapped") or 0.0, mean(rows, "major_faults") or 0.0
    if swapped < T.HOST_SWAPPED * size or faults < T.HOST_MAJOR_FAULTS:
        return None
    seen = (
        f"the host swapped out {human_size(swapped)} of it, {percent(swapped / size)}, and its guest waited "
        f"for {faults:.0f} pages a second in {duration(evidence.seconds(rows))}"
    )
    wanted = mean(rows, "working_set") or mean(rows, "resident") or float(size)
    return _reserved(evidence, "host-swaps", wanted, size, seen)


def _reserved(evidence: Evidence, reason: str, wanted: float, size: int, seen: str) -> Advice | Withheld:
    """A reservation of so much, in steps that are easily read."""
    reserve = min(size, -(-round(wanted) // _RESERVE_STEP) * _RESERVE_STEP)
    memory = evidence.spec.qos.memory
    if memory.reservation >= reserve:
        said = f"{seen}, though {format_size(reserve)} are reserved"
        return Withheld(kind="memory", reason="host", what=said)
    if memory.limit is not None and memory.limit < reserve:
        said = f"{seen}; its own limit of {format_size(memory.limit)} is below that"
        return Withheld(kind="memory", reason="capacity", what=said)
    if tried := evidence.tried("memory", "host-swaps", "squeezed"):
        return tried
    return advised(
        evidence,
        "memory",
        reason,
        {"qos.memory.reservation": format_size(reserve)},
        what=f"a reservation of {format_size(reserve)}",
        seen=seen,
        effect=f"{format_size(reserve)} of it stay in the host's memory; others give way",
    )
