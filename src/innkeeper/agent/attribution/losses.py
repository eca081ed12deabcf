"""How much of its time a VM lost to what, step by step. Pure.

In each step a VM wanted to run: it ran (`used`), or could have and did not. The time in which it could have
is split: first what its own CPU limit took, which is what throttling did or what it wanted beyond the limit,
since waiting for that is part of the waiting that the kernel counts (run_delay of schedstat, measured with v1
on 6.18); the rest of it went to others on the CPU. What
the host itself did not get of its CPUs (steal) hits all that ran by how much they ran. Then, of the time its
vCPUs stood idle, that in which memory was read back, and that in which requests to a disk were under way -
as a guest's own iowait counts.

All is in seconds a second over all vCPUs, and divided by what the VM wanted of that, or by one if it wanted
less: a share of the time, whatever the number of its vCPUs, and no more than 1 with all causes together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from innkeeper.agent.attribution.parties import HostParty, Party, Scene
from innkeeper.agent.attribution.timeline import mean

_VCPU: Final = re.compile(r"vcpu\d+")  # a column of the history
DISK_TIME: Final = "disk_time:"
DISK_HELD: Final = "disk_held:"
# Of the steps: where no more are not known, the answer is known well enough.
UNKNOWN: Final = 0.05
# Below that nothing was read back that would be worth asking how long it took.
FAULTS_PER_S: Final = 0.5
REFAULTS_PER_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Moment:
    """One step. Times are seconds a second; None: not counted here."""

    stamp: int
    vcpus: int
    used: float  # by vCPUs
    process: float  # by all of QEMU
    waited: float | None
    throttled: float | None
    limited: float  # of that what its own limit took
    contended: float  # and the rest
    stolen: float
    paged: float | None
    disks: Mapping[str, float]  # by device of the host
    held: Mapping[str, float]  # of that, by limits of its own: a part, 0 to 1

    @property
    def demand(self) -> float:
        """What it wanted of its vCPUs."""
        held = self.limited + self.contended + self.stolen + (self.paged or 0.0)
        return self.used + held + sum(self.disks.values())

    def share(self, lost: float) -> float:
        return min(1.0, lost / max(1.0, self.demand))


def moments(scene: Scene) -> tuple[Moment, ...]:
    """Of the steps in which the VM ran."""
    found = []
    for stamp in scene.victim.timeline.stamps:
        row = scene.victim.timeline.at(stamp)
        if "cpu" in row:
            found.append(_moment(stamp, row, scene.victim, scene.host))
    return tuple(found)


def _moment(stamp: int, row: Mapping[str, float], victim: Party, host: HostParty) -> Moment:
    each = [value for name, value in row.items() if _VCPU.fullmatch(name)]
    vcpus = len(each) or victim.vcpus
    used, waited, throttled = sum(each), row.get("wait"), row.get("throttled")
    # Without an account of waiting, that of throttling alone says what the limit took: on each CPU at once,
    # but of no more vCPUs than there are.
    limited = max(0.0, min(throttled or 0.0, vcpus - used if waited is None else waited))
    limited = max(limited, _beyond_limit(row, victim))
    contended = max(0.0, (waited or 0.0) - limited)
    stolen = _stolen(row["cpu"], host.timeline.at(stamp))
    idle = max(0.0, vcpus - used - limited - contended - stolen)
    paged = _paged(row)
    if paged is not None:
        paged = min(paged, idle)
        idle -= paged
    return Moment(
        stamp=stamp,
        vcpus=vcpus,
        used=used,
        process=row["cpu"],
        waited=waited,
        throttled=throttled,
        limited=limited,
        contended=contended,
        stolen=stolen,
        paged=paged,
        disks=_disks(row, idle),
        held={device: _held(row, device) for device in _devices(row)},
    )


def _beyond_limit(row: Mapping[str, float], victim: Party) -> float:
    """Of its waiting, what it wanted beyond its limit. A VM's weight is no more than its limit is worth
    (agent/qos/cpu.py): on a crowded host it hardly reaches it and is not throttled, yet can have no more."""
    most = victim.limit_at(row)
    return 0.0 if most is None else max(0.0, min(row.get("wait", 0.0), wanted(row) - most))


def wanted(row: Mapping[str, float]) -> float:
    """CPUs that all of QEMU ran on, or its vCPUs waited for."""
    return row.get("cpu", 0.0) + row.get("wait", 0.0)


def _stolen(process: float, host: Mapping[str, float]) -> float:
    """Its part of what the host was not given, by its part of what the host did."""
    used, stolen = host.get("cpu", 0.0), host.get("stolen", 0.0)
    return stolen * min(1.0, process / used) if used > 0 else 0.0


def _paged(row: Mapping[str, float]) -> float | None:
    """Pressure of its own cgroup is the best account there is (cgroup v2); then what the kernel counts of
    each thread, if it does; and where nothing was read back no time can have gone to it."""
    pressure, blocked, faults = row.get("pressure_memory"), row.get("blocked"), row.get("major_faults", 0.0)
    if pressure is not None:
        return pressure
    quiet = faults < FAULTS_PER_S and row.get("refaults", 0.0) < REFAULTS_PER_S
    # A process from before kernel.task_delayacct was set counts nothing, for ever.
    return blocked if blocked else (0.0 if quiet else None)


def _devices(row: Mapping[str, float]) -> list[str]:
    return [name.removeprefix(DISK_TIME) for name in row if name.startswith(DISK_TIME)]


def _disks(row: Mapping[str, float], idle: float) -> dict[str, float]:
    """Seconds a second that a vCPU stood idle with a request under way, by device."""
    under_way = {device: row[DISK_TIME + device] for device in _devices(row)}
    total = sum(under_way.values())
    if total <= 0:
        return dict.fromkeys(under_way, 0.0)
    lost = min(1.0, total, idle)
    return {device: lost * value / total for device, value in under_way.items()}


def disk_rate(row: Mapping[str, float], device: str, what: str) -> float:
    """Bytes or requests a second to a device, as the guest sees them (`what`: bytes, ops)."""
    if DISK_TIME + device not in row:
        return 0.0
    own = row.get(f"disk_{what}:{device}")
    if own is not None:
        return own
    names = ("disk_read", "disk_write") if what == "bytes" else ("disk_read_ops", "disk_write_ops")
    return sum(row.get(name, 0.0) for name in names)


def _held(row: Mapping[str, float], device: str) -> float:
    under_way = row[DISK_TIME + device]
    return min(1.0, row.get(DISK_HELD + device, 0.0) / under_way) if under_way > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Lost:
    """To one cause: the mean, and in each moment."""

    mean: float | None
    each: tuple[float, ...]


def lost(found: tuple[Moment, ...], what: str, device: str = "") -> Lost:
    """`what`: a resource of spec/why.py."""
    shares = [_share(moment, what, device) for moment in found]
    each = tuple(share or 0.0 for share in shares)
    return Lost(mean(each) if shares.count(None) <= UNKNOWN * len(shares) else None, each)


def _share(moment: Moment, what: str, device: str) -> float | None:
    if what == "cpu":
        return None if moment.waited is None else moment.share(moment.contended)
    if what == "cpu-limit":
        return moment.share(moment.limited)
    if what == "stolen":
        return moment.share(moment.stolen)
    if what == "memory":
        return None if moment.paged is None else moment.share(moment.paged)
    held = moment.held.get(device, 0.0)
    return moment.share(moment.disks.get(device, 0.0) * (held if what == "disk-limit" else 1.0 - held))
