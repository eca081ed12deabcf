"""CPU: waited for others, held by its own limit, or taken from the whole host. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from innkeeper.agent.attribution import users, words
from innkeeper.agent.attribution.losses import Lost, Moment, lost
from innkeeper.agent.attribution.parties import Party, Scene
from innkeeper.agent.attribution.timeline import mean
from innkeeper.agent.attribution.users import When
from innkeeper.spec.qos import share_number
from innkeeper.spec.sharing import kept_millicores
from innkeeper.spec.why import Cause, Consumer, Remedy

HOG: Final = 0.05  # of the host: who used less cannot give much
LEAST_LIMIT: Final = 0.1  # of a core: below that a VM hardly lives
# With so many CPUs wanted for each that is there, it is not bursts that meet.
CROWDED: Final = 0.98


def contention(scene: Scene, found: tuple[Moment, ...]) -> Cause:
    gone = lost(found, "cpu")
    when = When(tuple(moment.stamp for moment in found), gone.each)
    got, wanted = _got_and_wanted(found, gone)
    host_wanted = users.cpu_wanted(scene, when)
    everybody = users.cpu_users(scene, when)
    numbers = {"wanted": wanted, "got": got, "host_wanted": host_wanted}
    qemu_waited = mean([scene.victim.timeline.at(stamp).get("wait_qemu", 0.0) for stamp in when.stamps])
    if qemu_waited > 0:
        numbers["qemu_waited"] = qemu_waited
    missing = ""
    if gone.mean is None:
        missing = "this kernel does not count how long threads wait for a CPU (CONFIG_SCHED_INFO)"
    return Cause(
        resource="cpu",
        lost=gone.mean,
        verdict=_contended(scene, gone.mean, host_wanted) if gone.mean is not None else missing,
        missing=missing,
        unit="cpus",
        capacity=float(scene.host.cpus),
        numbers=numbers,
        users=everybody,
        advice=tuple(_against_contention(scene, everybody, wanted, got)),
    )


def _got_and_wanted(found: tuple[Moment, ...], gone: Lost) -> tuple[float, float]:
    """CPUs, QEMU's own threads included, when it lost most."""
    got = mean([moment.process for moment in found], gone.each)
    waited = mean([moment.contended + moment.limited for moment in found], gone.each)
    return got, got + waited


def _contended(scene: Scene, gone: float, host_wanted: float) -> str:
    victim, cpus = scene.victim, scene.host.cpus
    sentence = f"{victim.name} waited {words.percent(gone)} of the time for a CPU: "
    if host_wanted >= CROWDED * cpus:
        return f"{sentence}{host_wanted:.1f} of {cpus} CPUs were wanted"
    if victim.binding:
        where = "it is pinned to" if victim.binding == "pinned" else "of its NUMA node"
        return f"{sentence}those {where} were taken, of all {cpus} only {host_wanted:.1f} were wanted"
    return f"{sentence}many wanted one at the same moments, on average {host_wanted:.1f} of {cpus}"


def _against_contention(
    scene: Scene, everybody: tuple[Consumer, ...], wanted: float, got: float
) -> Iterator[Remedy]:
    victim = scene.victim
    if victim.binding == "pinned":
        yield Remedy(
            command=f"inn set {victim.name} cpu.pin=",
            effect=f"{victim.name} may run on any CPU of the host",
        )
    hogs = [one for one in everybody if not one.itself and one.used >= HOG * scene.host.cpus]
    refused = scene.host.no_cpu_qos
    if not refused:
        yield from _reserve(scene, wanted, got)
    if hogs and hogs[0].kind == "other":
        much = words.cpus(hogs[0].used)
        yield Remedy(
            command="", effect=f"processes that are no VMs of this daemon used {much} CPUs: see top(1)"
        )
    if refused:
        why = f"no VM can have more of the CPUs than others, or be held to a limit: {refused}; see inn doctor"
        yield Remedy(command="", effect=why)
        return
    for hog in [one for one in hogs if one.kind == "instance"][:1]:
        yield from _less_for(scene, hog, wanted - got)


def _less_for(scene: Scene, hog: Consumer, lacking: float) -> Iterator[Remedy]:
    victim = scene.victim
    party = next(one for one in scene.others if one.name == hog.name)
    if share_number(party.qos.cpu.shares) >= share_number(victim.qos.cpu.shares) and _below_high(victim):
        yield Remedy(
            command=f"inn set {victim.name} qos.cpu.shares=high",
            effect="it gets more of the CPUs while others want them, too",
        )
    # What the VM lacks, but half of what the other used at most.
    left = max(hog.used - lacking, hog.used / 2)
    limit = max(hog.reservation or 0.0, LEAST_LIMIT, _down(left))
    if limit < hog.used - 0.05:
        yield Remedy(
            command=f"inn set {hog.name} qos.cpu.limit={limit:g}",
            effect=f"{hog.name} used {words.cpus(hog.used)} CPUs, and would take no more than that",
        )


def _below_high(party: Party) -> bool:
    return share_number(party.qos.cpu.shares) < share_number("high")


def _reserve(scene: Scene, wanted: float, got: float) -> Iterator[Remedy]:
    """As much as it wants, or as the host can promise; nothing where that is no more than it got anyway."""
    victim = scene.victim
    promised = sum(one.qos.cpu.reservation for one in scene.others if one.holds_promises)
    room = (scene.host.cpus * 1000 - kept_millicores(scene.host.cpus) - promised) / 1000
    most = [room, float(victim.vcpus)]
    if victim.qos.cpu.limit is not None:
        most.append(victim.qos.cpu.limit / 1000)
    reservation = min(_up(wanted), *map(_down, most))
    if reservation >= LEAST_LIMIT and reservation > max(got, victim.qos.cpu.reservation / 1000):
        yield Remedy(
            command=f"inn set {victim.name} qos.cpu.reservation={reservation:g}",
            effect=f"it has {words.many_cpus(reservation)} whenever it wants so much, whatever others do",
        )


def _up(value: float) -> float:
    return math.ceil(value * 10 - 1e-6) / 10


def _down(value: float) -> float:
    return math.floor(value * 10 + 1e-6) / 10


def own_limit(scene: Scene, found: tuple[Moment, ...]) -> Cause:
    victim = scene.victim
    gone = lost(found, "cpu-limit")
    limit = None if victim.qos.cpu.limit is None else victim.qos.cpu.limit / 1000
    counted = [moment.throttled for moment in found if moment.throttled is not None]
    if not counted or (limit is None and not any(counted)):
        return _not_counted(limit)
    got, wanted = _got_and_wanted(found, gone)
    what = "a limit of its control group"
    advice = Remedy(command="", effect="the limit was set outside Innkeeper, on its control group")
    if limit is not None:
        what = f"its own limit of {words.many_cpus(limit)}"
        raised = max(_up(wanted), _up(limit + 0.1))
        advice = Remedy(
            command=f"inn set {victim.name} qos.cpu.limit={raised:g}",
            effect=f"it wanted {words.cpus(wanted)} CPUs; with nothing after the = there is no limit at all",
        )
    return Cause(
        resource="cpu-limit",
        lost=gone.mean,
        verdict=f"{what} held {victim.name} {words.percent(gone.mean or 0.0)} of the time: "
        f"it wanted {words.cpus(wanted)} CPUs and got {words.cpus(got)}",
        unit="cpus",
        capacity=limit,
        numbers={"wanted": wanted, "got": got, "throttled": mean(counted)},
        users=(Consumer(kind="instance", name=victim.name, used=got, itself=True, limit=limit),),
        advice=(advice,),
    )


def _not_counted(limit: float | None) -> Cause:
    if limit is None:
        return Cause(resource="cpu-limit", lost=0.0, verdict="it has no limit of its own")
    missing = f"its limit is {words.many_cpus(limit)}, and no control group of its own counts throttling"
    return Cause(resource="cpu-limit", lost=None, verdict=missing, missing=missing)


def stolen(scene: Scene, found: tuple[Moment, ...]) -> Cause:
    gone = lost(found, "stolen")
    when = When(tuple(moment.stamp for moment in found), gone.each)
    taken = when.of_host(scene, "stolen")
    share = gone.mean or 0.0
    return Cause(
        resource="stolen",
        lost=gone.mean,
        verdict=f"whoever runs this host as a VM took {words.cpus(taken)} of its {scene.host.cpus} CPUs, "
        f"which cost {scene.victim.name} {words.percent(share)} of the time",
        unit="cpus",
        capacity=float(scene.host.cpus),
        numbers={"stolen": taken},
        users=users.cpu_users(scene, when),
        advice=(
            Remedy(command="", effect="nothing on this host helps: it takes more CPU of whoever runs it"),
        ),
    )
