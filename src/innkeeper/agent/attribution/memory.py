"""Memory: time that went to reading pages back. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from innkeeper.agent.attribution import users, words
from innkeeper.agent.attribution.losses import Moment, lost
from innkeeper.agent.attribution.parties import Scene
from innkeeper.agent.attribution.timeline import known_mean, mean
from innkeeper.agent.attribution.users import When
from innkeeper.spec.overcommit import kept_bytes
from innkeeper.spec.why import Cause, Consumer, Remedy
from innkeeper.units import MiB, format_size

# So near to its limit the limit is what evicts.
AT_LIMIT: Final = 0.95
_GRANULE: Final = 64 * MiB  # what is advised is a multiple of it


def shortage(scene: Scene, found: tuple[Moment, ...]) -> Cause:
    victim = scene.victim
    gone = lost(found, "memory")
    when = When(tuple(moment.stamp for moment in found), gone.each)
    rows = [victim.timeline.at(stamp) for stamp in when.stamps]
    faults = mean([row.get("major_faults", 0.0) for row in rows])
    refaults = known_mean([row.get("refaults") for row in rows])
    numbers = {"major_faults": faults}
    if refaults is not None:
        numbers["refaults"] = refaults
    numbers["host_swapped_in"] = when.of_host(scene, "swapped_in")
    numbers["host_refaults"] = when.of_host(scene, "refaults")
    limit = victim.qos.memory.limit
    resident = max((row.get("resident", 0.0) for row in rows), default=0.0)
    at_limit = limit is not None and resident >= AT_LIMIT * limit
    missing = ""
    if gone.mean is None:
        missing = (
            f"pages were read back {max(faults, refaults or 0.0):.0f} times a second; how long it waited for "
            "them is not counted: sysctl kernel.task_delayacct=1, then start it again"
        )
    everybody = users.memory_users(scene, when)
    held = when.of_host(scene, "memory_used")
    numbers["resident"] = resident
    back = f"{words.percent(gone.mean or 0.0)} of the time until pages were read back"
    if at_limit and limit is not None:
        verdict = f"its own limit of {words.size(limit)} of memory made {victim.name} wait {back}"
    else:
        of = f"{words.size(held)} of {words.size(scene.host.memory_bytes)} of the host's memory were in use"
        verdict = f"{victim.name} waited {back}: {of}"
    return Cause(
        resource="memory-limit" if at_limit else "memory",
        lost=gone.mean,
        verdict=missing or verdict,
        missing=missing,
        unit="bytes",
        capacity=float(scene.host.memory_bytes),
        numbers=numbers,
        users=everybody,
        advice=tuple(_raised(scene, limit) if at_limit and limit else _kept(scene, everybody)),
    )


def _raised(scene: Scene, limit: int) -> Iterator[Remedy]:
    most = max(limit + _GRANULE, scene.victim.memory_bytes + _GRANULE * 2)
    yield Remedy(
        command=f"inn set {scene.victim.name} qos.memory.limit={_whole(most)}",
        effect="guest RAM and what QEMU needs have room in it",
    )


def _kept(scene: Scene, everybody: tuple[Consumer, ...]) -> Iterator[Remedy]:
    victim = scene.victim
    promised = sum(one.qos.memory.reservation for one in scene.others if one.holds_promises)
    room = scene.host.memory_bytes - kept_bytes(scene.host.memory_bytes) - promised
    wish = min(victim.memory_bytes, victim.qos.memory.limit or victim.memory_bytes)
    if 0 < wish <= room and victim.qos.memory.reservation < wish:
        yield Remedy(
            command=f"inn set {victim.name} qos.memory.reservation={format_size(wish)}",
            effect="its RAM stays in the host's memory, whatever others need",
        )
    hog = next((one for one in everybody if one.kind == "instance" and not one.itself), None)
    if hog is not None and hog.used > _GRANULE * 2:
        limit = max(hog.reservation or 0.0, hog.used * 0.75)
        if limit + _GRANULE <= hog.used:
            yield Remedy(
                command=f"inn set {hog.name} qos.memory.limit={_whole(limit)}",
                effect=f"{hog.name} has {words.size(hog.used)} of its own and would give some of it back",
            )


def _whole(value: float) -> str:
    return format_size(math.ceil(value / _GRANULE) * _GRANULE)
