"""KVM in the nested lab: nested paging beside shadow page tables, small beside huge pages, TCG beside KVM.

The lab's CPU is emulated (docs/howto/lab.md), so that times mean nothing and ratios something: both sides of
each are measured in the same lab, one after the other.
"""

from __future__ import annotations

import json
import sys
from statistics import median
from typing import Any, Final

from lab.nested import LAB_ENVIRONMENT, ROOT, NestedHost

from bench.lib.lab import Lab
from bench.lib.sample import Sample

MEASURING_S: Final = 5400.0
# What is divided by what, and what it tells.
RATIOS: Final = {
    "shadow-boot": ("boot-shadow", "boot-npt", "boot with shadow page tables / with nested paging"),
    "shadow-fork": ("fork-shadow", "fork-npt", "making processes, shadow page tables / nested paging"),
    "shadow-step": ("step-shadow-small", "step-npt-small", "random access, shadow tables / nested paging"),
    "huge-guest": ("step-npt-small", "step-npt-huge", "random access, guest pages of 4 KiB / of 2 MiB"),
    "huge-host": ("step-npt-small", "step-npt-small-on-thp", "random access, guest RAM small / huge pages"),
    "huge-both": ("step-npt-small", "step-npt-huge-on-thp", "random access, 4 KiB in both / 2 MiB in both"),
    "tcg-boot": ("boot-tcg", "boot-npt", "boot under TCG / KVM"),
    "tcg-fork": ("fork-tcg", "fork-npt", "making processes under TCG / KVM"),
    "tcg-step": ("step-tcg-small", "step-npt-small", "random access under TCG / KVM"),
    "remote-node": ("step-node-remote", "step-node-local", "random access, memory on another node / its own:"
                    " emulated nodes are equally far"),
}  # fmt: skip


def run(lab: Lab) -> list[Sample]:
    def say(text: str) -> None:
        print(f"lab: {text}", file=sys.stderr, flush=True)

    host = NestedHost(say=say)
    try:
        host.start()
        host.put_code()
        quick = "--quick" if lab.quick else ""
        script = f"cd {ROOT} && {LAB_ENVIRONMENT} python3 -m lab.measure {quick} >/tmp/samples.json"
        if host.follow(script, MEASURING_S) != 0:
            raise RuntimeError("measuring failed in the lab")
        told: list[dict[str, Any]] = json.loads(host.fetch("/tmp/samples.json"))
    finally:
        host.close()
    samples = [Sample(**one) for one in told]
    return [*samples, *ratios(samples)]


def ratios(samples: list[Sample]) -> list[Sample]:
    """Medians divided, of the pairs that were measured."""
    known = {one.name.removeprefix("lab."): one for one in samples}
    found = []
    for name, (upper, lower, note) in RATIOS.items():
        if upper in known and lower in known and known[lower].p50:
            value = median(known[upper].values) / known[lower].p50
            found.append(Sample(f"lab.{name}", "x", [value], note=note))
    return found
