"""Who used a resource in the time that counts, ranked. Pure.

Readings of different things are never of quite the same moment: what VMs used may add up to more than the
host says was used. It is scaled then, so that all users together are no more than there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from innkeeper.agent.attribution.losses import disk_rate, wanted
from innkeeper.agent.attribution.parties import Party, Scene
from innkeeper.agent.attribution.timeline import mean
from innkeeper.spec.why import Consumer, ConsumerKind

OTHERS: Final = "other processes of the host"
MERGER: Final = "ksmd, which merges equal pages"
STOLEN: Final = "whoever runs this host as a VM"
MEMORY_OTHERS: Final = "the host itself, and pages that several VMs share"
# Less than that is not worth a line: CPUs, bytes, bytes a second, and parts of a device's time.
_LEAST_CPUS: Final = 0.005
_LEAST_BYTES: Final = 1 << 20
_LEAST_PER_S: Final = 1024.0
_LEAST_SHARE: Final = 0.001


@dataclass(frozen=True, slots=True)
class When:
    """The steps, and how much each counts: by what the VM lost in it."""

    stamps: tuple[int, ...]
    weights: tuple[float, ...]

    def mean(self, value: Callable[[int], float]) -> float:
        return mean([value(stamp) for stamp in self.stamps], self.weights)

    def of(self, party: Party, name: str) -> float:
        return self.mean(lambda stamp: party.timeline.at(stamp).get(name, 0.0))

    def of_host(self, scene: Scene, name: str) -> float:
        return self.mean(lambda stamp: scene.host.timeline.at(stamp).get(name, 0.0))


def ranked(users: Iterable[Consumer], least: float) -> tuple[Consumer, ...]:
    """Who used most first; of equals by name, so that the order is always the same."""
    shown = [one for one in users if one.used >= least or one.itself]
    return tuple(sorted(shown, key=lambda one: (-one.used, one.kind, one.name)))


def _scaled(values: Sequence[float], room: float) -> list[float]:
    total = sum(values)
    factor = room / total if total > room and total > 0 else 1.0
    return [value * factor for value in values]


def cpu_users(scene: Scene, when: When) -> tuple[Consumer, ...]:
    """In CPUs; together no more than the host has. Those that can never be on a CPU of the VM are left
    out."""
    capacity = float(scene.host.cpus)
    stolen = min(capacity, when.of_host(scene, "stolen"))
    used = _scaled([when.of(party, "cpu") for party in scene.everybody], capacity - stolen)
    rest = min(capacity - stolen, when.of_host(scene, "cpu")) - sum(used)
    merger = max(0.0, min(rest, when.of_host(scene, "merger")))
    rivals = {party.uid for party in scene.on_its_cpus}
    found = [
        _instance(
            party,
            scene,
            value,
            party.qos.cpu.shares,
            party.qos.cpu.reservation / 1000,
            None if party.qos.cpu.limit is None else party.qos.cpu.limit / 1000,
        )
        for party, value in zip(scene.everybody, used, strict=True)
        if party.uid in rivals
    ]
    beside: list[tuple[ConsumerKind, str, float]] = [
        ("other", OTHERS, max(0.0, rest - merger)),
        ("merger", MERGER, merger),
        ("stolen", STOLEN, stolen),
    ]
    found += [Consumer(kind=kind, name=name, used=value) for kind, name, value in beside]
    return ranked(found, _LEAST_CPUS)


def cpu_wanted(scene: Scene, when: When) -> float:
    """CPUs that VMs ran on or waited for, and what the rest used: for what others waited is not known. What
    its own limit keeps from a VM no CPU of the host could have given it."""

    def could_use(party: Party, stamp: int) -> float:
        row = party.timeline.at(stamp)
        found = wanted(row) - min(row.get("wait", 0.0), row.get("throttled", 0.0))
        most = party.limit_at(row)
        return found if most is None else min(found, max(most, row.get("cpu", 0.0)))

    ours = sum(when.mean(partial(could_use, party)) for party in scene.everybody)
    used = sum(when.of(party, "cpu") for party in scene.everybody)
    return ours + max(0.0, when.of_host(scene, "cpu") - used)


def memory_users(scene: Scene, when: When) -> tuple[Consumer, ...]:
    """In bytes that are theirs alone; what several share is nobody's."""
    capacity = float(scene.host.memory_bytes)
    used = min(capacity, when.of_host(scene, "memory_used"))
    own = _scaled([when.mean(_own_memory(party)) for party in scene.everybody], used)
    found = [
        _instance(
            party,
            scene,
            value,
            party.qos.memory.shares,
            float(party.qos.memory.reservation),
            None if party.qos.memory.limit is None else float(party.qos.memory.limit),
        )
        for party, value in zip(scene.everybody, own, strict=True)
    ]
    found.append(Consumer(kind="other", name=MEMORY_OTHERS, used=max(0.0, used - sum(own))))
    return ranked(found, _LEAST_BYTES)


def _own_memory(party: Party) -> Callable[[int], float]:
    """Page tables are walked seldom: until then all that is resident counts as its own."""

    def own(stamp: int) -> float:
        row = party.timeline.at(stamp)
        return row.get("private", row.get("resident", 0.0))

    return own


def device_users(scene: Scene, when: When, device: str) -> tuple[Consumer, ...]:
    """Parts of the device's busy time, half by bytes and half by requests: either alone would hide one that
    sends few large ones, or many small ones. Without an account of the device itself: bytes a second."""
    total_bytes = when.of_host(scene, f"device_bytes:{device}")
    total_ops = when.of_host(scene, f"device_ops:{device}")
    busy = device_busy(scene, when, device)
    reached = [
        (when.mean(_reached(party, device, "bytes")), when.mean(_reached(party, device, "ops")))
        for party in scene.everybody
    ]
    if busy is None:
        found = [_plain(party, scene, one[0]) for party, one in zip(scene.everybody, reached, strict=True)]
        return ranked(found, _LEAST_PER_S)
    all_bytes = max(total_bytes, sum(one[0] for one in reached))
    all_ops = max(total_ops, sum(one[1] for one in reached))
    parts = [busy * _part(one, (all_bytes, all_ops)) for one in reached]
    found = [_plain(party, scene, value) for party, value in zip(scene.everybody, parts, strict=True)]
    found.append(Consumer(kind="other", name=OTHERS, used=max(0.0, busy - sum(parts))))
    return ranked(found, _LEAST_SHARE)


def device_busy(scene: Scene, when: When, device: str) -> float | None:
    if f"device_busy:{device}" not in scene.host.timeline.names():
        return None
    return min(1.0, when.of_host(scene, f"device_busy:{device}"))


def _reached(party: Party, device: str, what: str) -> Callable[[int], float]:
    """What the guest asked for, less what the host's page cache answered."""

    def reached(stamp: int) -> float:
        row = party.timeline.at(stamp)
        asked = row.get("disk_read", 0.0) + row.get("disk_write", 0.0)
        storage = row.get("storage")
        through = min(1.0, storage / asked) if storage is not None and asked > 0 else 1.0
        return disk_rate(row, device, what) * through

    return reached


def _part(values: tuple[float, float], totals: tuple[float, float]) -> float:
    known = [value / total for value, total in zip(values, totals, strict=True) if total > 0]
    return sum(known) / len(known) if known else 0.0


def _plain(party: Party, scene: Scene, used: float) -> Consumer:
    return _instance(party, scene, used, None, 0.0, None)


def _instance(
    party: Party,
    scene: Scene,
    used: float,
    shares: str | int | None,
    reservation: float,
    limit: float | None,
) -> Consumer:
    return Consumer(
        kind="instance",
        name=party.name,
        used=used,
        itself=party is scene.victim,
        shares=shares,
        reservation=reservation or None,
        limit=limit,
    )
