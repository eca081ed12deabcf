"""All rules over one VM's evidence. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from innkeeper.control.advice.disk import disk
from innkeeper.control.advice.evidence import Evidence, Said
from innkeeper.control.advice.memory import memory
from innkeeper.control.advice.numa import numa
from innkeeper.control.advice.pages import pages
from innkeeper.control.advice.vcpus import vcpus
from innkeeper.spec.advice import Advice, InstanceAdvice, Withheld

# What a VM suffers from comes first, then what it could give to others.
_URGENCY: Final = (
    "swapping", "full", "squeezed", "host-swaps", "throttled", "limited", "busy", "remote", "small-pages",
    "single-threaded", "idle", "roomy",
)  # fmt: skip
RULES: Final[tuple[Callable[[Evidence], Said], ...]] = (vcpus, memory, disk, pages, numa)


def advise(evidence: Evidence) -> InstanceAdvice:
    """What would pay, the most urgent first; and what does not, and why."""
    said = [one for rule in RULES for one in rule(evidence)]
    advice = [one for one in said if isinstance(one, Advice)]
    return InstanceAdvice(
        name=evidence.name,
        state=evidence.status.state.value,
        window_s=evidence.window_s,
        data_s=evidence.seconds(
            evidence.of_size("given_cpus", evidence.status.cpus) if evidence.status.cpus else ()
        ),
        advice=tuple(sorted(advice, key=lambda one: _URGENCY.index(one.reason))),
        withheld=tuple(one for one in said if isinstance(one, Withheld)),
        trials=evidence.trials,
    )
