"""Why a VM is slow, from what is known of it, of the others and of the host. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from innkeeper.agent.attribution import cpu, disk, memory, words
from innkeeper.agent.attribution.losses import Moment, moments
from innkeeper.agent.attribution.parties import Scene
from innkeeper.agent.attribution.timeline import mean
from innkeeper.errors import WrongState
from innkeeper.spec.why import Cause, Why
from innkeeper.units import human_duration

# What costs less than that of the time is not what anybody means by slow.
HELD: Final = 0.05
BUSY: Final = 0.9  # of its vCPUs: it cannot do more with as many
IDLE: Final = 0.02


def why(scene: Scene) -> Why:
    """Raises WrongState when it did not run in that time, or was not read yet."""
    # Sums of the same numbers are the same only in the same order.
    scene = replace(scene, others=tuple(sorted(scene.others, key=lambda one: one.name)))
    found = moments(scene)
    if not found:
        raise _nothing_known(scene)
    causes = _ranked(
        [
            cpu.contention(scene, found),
            cpu.own_limit(scene, found),
            cpu.stolen(scene, found),
            memory.shortage(scene, found),
            *disk.causes(scene, found),
        ]
    )
    return Why(
        name=scene.victim.name,
        uid=scene.victim.uid,
        state=scene.victim.state,
        accelerator=scene.victim.accelerator,
        begin=scene.begin,
        end=scene.end,
        known_s=float(min(len(found) * scene.step_s, scene.end - scene.begin)),
        step_s=scene.step_s,
        verdict=_verdict(scene, found, causes),
        causes=tuple(causes),
    )


def _nothing_known(scene: Scene) -> WrongState:
    victim, span = scene.victim, human_duration(scene.end - scene.begin)
    if victim.state in ("starting", "running", "paused", "hung", "stopping"):
        return WrongState(
            f"Nothing is known of {victim.name} in the last {span} yet: it takes two readings",
            hint="ask again in some seconds",
        )
    return WrongState(
        f"{victim.name} did not run in the last {span}: it is {victim.state}",
        hint="give a longer time, such as --since 1h, or start it",
    )


def _ranked(causes: Sequence[Cause]) -> list[Cause]:
    """What cost most first, then what is not known; advice only where it cost something worth it."""
    order = {
        "cpu-limit": 0,
        "cpu": 1,
        "memory-limit": 2,
        "memory": 3,
        "disk-limit": 4,
        "disk": 5,
        "stolen": 6,
    }
    shown = [
        one if one.lost is not None and one.lost >= HELD else one.model_copy(update={"advice": ()})
        for one in causes
    ]
    return sorted(
        shown,
        key=lambda one: (one.lost is None, -(one.lost or 0.0), order[one.resource], one.device),
    )


def _verdict(scene: Scene, found: tuple[Moment, ...], causes: Sequence[Cause]) -> str:
    victim, first = scene.victim, causes[0]
    if first.lost is not None and first.lost >= HELD:
        return first.verdict
    if victim.state == "paused":
        return f"{victim.name} is paused: inn resume {victim.name}"
    if victim.state == "hung":
        return f"QEMU of {victim.name} does not answer; nothing that is counted held it up"
    unknown = [one for one in causes if one.lost is None]
    but = "; " + "; ".join(one.missing for one in unknown) if unknown else ""
    nothing = (
        f"nothing that is counted held {victim.name} up" if unknown else f"nothing held {victim.name} up"
    )
    vcpus = found[-1].vcpus
    used = mean([moment.used for moment in found])
    many = f"{vcpus} vCPU" + ("" if vcpus == 1 else "s")
    if used >= BUSY * vcpus:
        much, them = words.percent(used / vcpus), "it" if vcpus == 1 else "them"
        return f"{nothing}: it used {much} of its {many} and can do no more with {them}{but}"
    if used < IDLE:
        return f"{nothing}: it was idle{but}"
    return f"{nothing}: it used {words.cpus(used)} of its {many}{but}"
