"""Which changes of a spec a running VM takes up at once, and which at its next start. Pure.

The table below is all there is to say about it; the verbs ask it (api/verbs/respec.py), and what it calls
live is carried out by agent/ops/change.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from innkeeper.spec.instance import InstanceSpec, InstanceStatus

# "" where it can be done at once; else why not before the next start.
Rule = Callable[[InstanceSpec, InstanceStatus], str]


@dataclass(frozen=True, slots=True)
class Live:
    """`acts`: something has to be done to the VM. `drifted`: what runs is not as the spec says, though that
    may not have changed: the guest refused, or the VM went back to a snapshot."""

    rule: Rule
    acts: bool = True
    drifted: Callable[[InstanceSpec, InstanceStatus], bool] = lambda spec, status: False


def _always(spec: InstanceSpec, status: InstanceStatus) -> str:
    return ""


def _vcpus(spec: InstanceSpec, status: InstanceStatus) -> str:
    if status.cpus == 0:
        return "how many it has is not known: it does not answer"
    if spec.cpu.count <= status.cpus_max or spec.cpu.count == status.cpus:
        return ""
    return f"it runs with room for {status.cpus_max} vCPUs (cpu.max)"


# Paths as in `inn show --yaml`; one stands for all below it, too.
LIVE: Final[dict[str, Live]] = {
    "restart_policy": Live(_always, acts=False),
    "labels": Live(_always, acts=False),
    "cpu.count": Live(_vcpus, drifted=lambda spec, status: status.cpus > 0 and status.cpus != spec.cpu.count),
    "cpu.pin": Live(_always),
    "cpu.emulator": Live(_always),
    "cpu.iothreads": Live(_always),
}


@dataclass(frozen=True, slots=True)
class Effects:
    """Of changed paths: what the agent has to do to a running VM now, and what waits for its next start; why,
    of what might have changed live (of the rest it is always so, and the reason empty)."""

    now: tuple[str, ...]
    later: dict[str, str]


def effects(changed: Iterable[str], spec: InstanceSpec, status: InstanceStatus) -> Effects:
    """What becomes of a running VM when `spec` is what is wanted from now on."""
    now: list[str] = []
    later: dict[str, str] = {}
    for path in changed:
        live = _live(path)
        if live is None:
            later[path] = ""
        elif why := live.rule(spec, status):
            later[path] = why
        elif live.acts:
            now.append(path)
    for path, live in LIVE.items():
        if path not in now and live.drifted(spec, status) and not live.rule(spec, status):
            now.append(path)
    return Effects(tuple(now), later)


def _live(path: str) -> Live | None:
    while path:
        if path in LIVE:
            return LIVE[path]
        path = path.rpartition(".")[0]
    return None
