"""When the host is to look for equal pages, and how hard: a step function. Pure.

The rules and the numbers are those of ksmtuned (Red Hat, 2009) and of MOM's ksm.policy, as oVirt's VDSM runs
it: on while less than a fifth of memory is free, more pages at a time for as long as that lasts, fewer
after. Added are hysteresis, the pressure the kernel measures, and that nobody looks where nothing can be
merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from innkeeper.spec.overcommit import KsmMode
from innkeeper.units import GiB, human_size

INTERVAL_S: Final = 10.0
# ksm_free_percent of MOM; and where it is left again, so that it does not go on and off.
ON_BELOW: Final = 0.20
OFF_ABOVE: Final = 0.30
# ksmtuned's KSM_NPAGES_{BOOST,DECAY,MIN,MAX}, which are for a minute: a sixth at each of our steps.
BOOST_PAGES: Final = 50
DECAY_PAGES: Final = 8
MIN_PAGES: Final = 64
MAX_PAGES: Final = 1250
# ksmtuned's KSM_SLEEP_MSEC: of a host with 16 GiB; larger ones sleep less, smaller ones more.
SLEEP_MS: Final = 10
SLEEP_BASE_BYTES: Final = 16 * GiB
# PSI, some, of the last ten seconds: above the first memory is short, whatever is free; above the second
# CPU time is.
MEMORY_PRESSURE: Final = 0.05
CPU_PRESSURE: Final = 0.40


@dataclass(frozen=True, slots=True)
class Seen:
    """`mergeable_bytes`: RAM of VMs that KSM can look at all (private views of shared RAM)."""

    total_bytes: int
    available_bytes: int
    mergeable_bytes: int
    memory_pressure: float = 0.0
    cpu_pressure: float = 0.0


@dataclass(frozen=True, slots=True)
class Tuning:
    """`on` False: it is left as it was before we came."""

    on: bool = False
    pages: int = MIN_PAGES
    sleep_ms: int = 20
    why: str = ""


def step(before: Tuning, seen: Seen, mode: KsmMode) -> Tuning:
    """What to do until the next step, INTERVAL_S later."""
    free = f"{human_size(seen.available_bytes)} of {human_size(seen.total_bytes)} is available"
    sleep_ms = max(SLEEP_MS, round(SLEEP_MS * SLEEP_BASE_BYTES / max(1, seen.total_bytes)))
    if mode == "never":
        return Tuning(why="the host's setting is never")
    if not seen.mergeable_bytes:
        return Tuning(why="no running VM has pages that can be merged (only forks have)")
    share = seen.available_bytes / max(1, seen.total_bytes)
    pressed = share < ON_BELOW or seen.memory_pressure > MEMORY_PRESSURE
    if mode == "auto" and not (pressed or (before.on and share <= OFF_ABOVE)):
        return Tuning(why=f"not needed: {free}")
    pages = before.pages if before.on else MIN_PAGES
    pages += BOOST_PAGES if pressed else -DECAY_PAGES
    most = MAX_PAGES // 2 if seen.cpu_pressure > CPU_PRESSURE else MAX_PAGES
    why = "the host's setting is always" if mode == "always" else free
    return Tuning(True, min(most, max(MIN_PAGES, pages)), sleep_ms, why)
