"""Which changes of a spec a running VM takes up at once, and which at its next start. Pure.

The table below is all there is to say about it; the verbs ask it (api/verbs/respec.py), and what it calls
live is carried out by agent/ops/change.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from innkeeper.spec import disklimits
from innkeeper.spec.instance import InstanceSpec, InstanceStatus
from innkeeper.units import format_size

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


def _memory(spec: InstanceSpec, status: InstanceStatus) -> str:
    now, size = status.memory, spec.memory.size
    if size == now.size:
        return ""
    if not now.step:
        return "it was started without memory.max, so it has no room for more"
    if size < now.start:
        return f"it was started with {format_size(now.start)}, and cannot shrink below that"
    if size > now.most:
        return f"it runs with room for {format_size(now.most)}"
    if (size - now.start) % now.step:
        return f"it was started with {format_size(now.start)}, and grows in steps of {format_size(now.step)}"
    return ""


def _memory_drifted(spec: InstanceSpec, status: InstanceStatus) -> bool:
    return status.memory.step > 0 and status.memory.size != spec.memory.size


# Paths as in `inn show --yaml`, a * for any place in a list; one stands for all below it, too.
LIVE: Final[dict[str, Live]] = {
    "restart_policy": Live(_always, acts=False),
    "labels": Live(_always, acts=False),
    "memory.size": Live(_memory, drifted=_memory_drifted),
    "cpu.count": Live(_vcpus, drifted=lambda spec, status: status.cpus > 0 and status.cpus != spec.cpu.count),
    "qos.memory.balloon": Live(_always),
    "qos.memory.shares": Live(_always),
    "qos.memory.reservation": Live(_always),
    "qos.memory.limit": Live(_always),
    "qos.memory.swap": Live(_always),
    "cpu.pin": Live(_always),
    "cpu.emulator": Live(_always),
    "cpu.iothreads": Live(_always),
    "disks.*.qos": Live(_always),
    "qos.disk": Live(_always, drifted=disklimits.drifted),
    "qos.cpu": Live(_always),
}


_PLACE: Final = re.compile(r"\.\d+(?=\.)")


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
    path = _PLACE.sub(".*", path)
    while path:
        if path in LIVE:
            return LIVE[path]
        path = path.rpartition(".")[0]
    return None
