"""Disks: time that vCPUs stood idle with requests under way, by device of the host. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from innkeeper.agent.attribution import users, words
from innkeeper.agent.attribution.losses import DISK_HELD, DISK_TIME, Moment, disk_rate, lost
from innkeeper.agent.attribution.parties import DiskLimit, Party, Scene
from innkeeper.agent.attribution.timeline import mean
from innkeeper.agent.attribution.users import When
from innkeeper.spec import diskqos
from innkeeper.spec.why import Cause, Consumer, Remedy
from innkeeper.units import KiB

BUSY: Final = 0.7  # of a device: requests wait for each other
LEAST_OPS: Final = 0.01  # a second: of fewer nothing can be said on average
QEMU_WAITED: Final = 0.1  # QEMU's own threads, for a CPU: it is not the device that is slow


def causes(scene: Scene, found: tuple[Moment, ...]) -> Iterator[Cause]:
    devices = sorted({device for moment in found for device in moment.disks})
    if not devices and scene.victim.disks:
        missing = "QEMU has not told twice yet what its disks did, or it does not answer"
        yield Cause(resource="disk", lost=None, verdict=missing, missing=missing)
    for device in devices:
        yield _crowded(scene, found, device)
        if scene.victim.disk_limits and any(DISK_HELD + device in row for row in _rows(scene)):
            yield _own_limit(scene, found, device)


def _rows(scene: Scene) -> Iterator[Mapping[str, float]]:
    return (scene.victim.timeline.at(stamp) for stamp in scene.victim.timeline.stamps)


def _crowded(scene: Scene, found: tuple[Moment, ...], device: str) -> Cause:
    gone = lost(found, "disk", device)
    when = When(tuple(moment.stamp for moment in found), gone.each)
    busy = users.device_busy(scene, when, device)
    everybody = users.device_users(scene, when, device)
    numbers = _numbers(scene, when, device)
    if busy is not None:
        numbers["busy"] = busy
    qemu_waited = when.of(scene.victim, "wait_qemu")
    sentence = f"{scene.victim.name} waited {words.percent(gone.mean or 0.0)} of the time for its disk"
    sentence += f" on {device}{_each_took(numbers)}"
    if busy is not None and busy >= BUSY:
        sentence += f"; the device was busy {words.percent(busy)} of the time"
    elif qemu_waited >= QEMU_WAITED:
        sentence += (
            f"; QEMU's own threads waited {words.percent(min(1.0, qemu_waited))} of the time for a CPU"
        )
    elif busy is not None:
        sentence += f"; the device was busy only {words.percent(busy)} of the time: slow, not crowded"
    return Cause(
        resource="disk",
        device=device,
        lost=gone.mean,
        verdict=sentence,
        unit="share" if busy is not None else "bytes/s",
        capacity=1.0 if busy is not None else None,
        numbers=numbers,
        users=everybody,
        advice=tuple(_against(scene, everybody, device, busy)),
    )


def _numbers(scene: Scene, when: When, device: str) -> dict[str, float]:
    victim = scene.victim

    def rate(what: str, stamp: int) -> float:
        return disk_rate(victim.timeline.at(stamp), device, what)

    rates = {what: when.mean(partial(rate, what)) for what in ("bytes", "ops")}
    return {**rates, "under_way": when.of(victim, DISK_TIME + device)}


def _each_took(numbers: dict[str, float]) -> str:
    """By Little's law: so many at the same time, so many a second."""
    if numbers["ops"] < LEAST_OPS:
        return ""
    return f", {words.duration(numbers['under_way'] / numbers['ops'])} for each request"


def _against(
    scene: Scene, everybody: tuple[Consumer, ...], device: str, busy: float | None
) -> Iterator[Remedy]:
    hog = next((one for one in everybody if not one.itself), None)
    if hog is None or busy is None or busy < BUSY:
        return
    if hog.kind == "instance":
        yield from _half(next(one for one in scene.others if one.name == hog.name), device)
    elif hog.kind == "other":
        yield Remedy(
            command="", effect="processes that are no VMs of this daemon use the device: see iotop(8)"
        )


def _half(hog: Party, device: str) -> Iterator[Remedy]:
    stamps = hog.timeline.stamps
    if hog.disk_limits:  # a limit of both directions cannot stand beside one of either
        did = {one: mean([_did(hog.timeline.at(stamp), one) for stamp in stamps]) for one in hog.disk_limits}
        nearest = max(did, key=lambda one: did[one] / one.most)
        half = min(did[nearest], nearest.most) / 2
        if half >= (diskqos.LEAST_OPS if nearest.what.endswith("ops") else diskqos.LEAST_BYTES):
            yield Remedy(
                command=f"inn set {hog.name} {nearest.setting}={_value(nearest.what, half)}",
                effect=f"{hog.name} did {_in_words(nearest.what, did[nearest])}; half leaves room for others",
            )
        return
    ops = mean([disk_rate(hog.timeline.at(stamp), device, "ops") for stamp in stamps])
    if ops >= 2:
        yield Remedy(
            command=f"inn set {hog.name} qos.disk.total_ops={max(1, round(ops / 2))}",
            effect=f"{hog.name} sent {ops:.0f} requests a second; half of them leave room for others",
        )


def _own_limit(scene: Scene, found: tuple[Moment, ...], device: str) -> Cause:
    gone = lost(found, "disk-limit", device)
    when = When(tuple(moment.stamp for moment in found), gone.each)
    victim = scene.victim
    numbers = _numbers(scene, when, device)
    rows = [victim.timeline.at(stamp) for stamp in when.stamps]
    did = {limit: mean([_did(row, limit) for row in rows], when.weights) for limit in victim.disk_limits}
    nearest = max(did, key=lambda limit: did[limit] / limit.most)
    may, does = _in_words(nearest.what, nearest.most), _in_words(nearest.what, did[nearest])
    return Cause(
        resource="disk-limit",
        device=device,
        lost=gone.mean,
        verdict=f"the limit of its own disks held {victim.name} {words.percent(gone.mean or 0.0)} of"
        f" the time: they may do {may} and did {does}{_each_took(numbers)}",
        numbers={**numbers, "limit": nearest.most, "did": did[nearest]},
        advice=(_raised(victim.name, nearest),),
    )


def _raised(name: str, limit: DiskLimit) -> Remedy:
    doubled = _value(limit.what, limit.most * 2)
    command = f"inn set {name} {limit.setting}={doubled}"
    if limit.burst is None:
        return Remedy(command=command, effect="twice as much; without a number there is no limit at all")
    if limit.burst < limit.most * 2:
        command += f" {limit.setting}_burst={doubled}"
    return Remedy(command=command, effect="twice as much")


def _did(row: Mapping[str, float], limit: DiskLimit) -> float:
    """Before the limit was set nobody counted for it, but all disks together: `disk_read` is bytes,
    `disk_read_ops` requests."""
    counted = row.get(limit.column)
    if counted is not None:
        return counted
    direction, _, unit = limit.what.partition("_")
    directions = ("read", "write") if direction == "total" else (direction,)
    return sum(row.get(f"disk_{each}" + ("_ops" if unit == "ops" else ""), 0.0) for each in directions)


def _in_words(what: str, value: float) -> str:
    if not what.endswith("ops"):
        return f"{words.size(value)}/s"
    return f"{value:.0f} request{'' if round(value) == 1 else 's'} a second"


def _value(what: str, value: float) -> str:
    return f"{value:.0f}" if what.endswith("ops") else f"{math.ceil(value / KiB)}KiB/s"
