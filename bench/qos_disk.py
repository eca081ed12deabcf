"""Limits of disks under a guest that reads and writes as fast as it may: how near, how soon.

Two disks of a tiny guest, read and written past its page cache by busybox's dd, one request after the other.
What is measured is QEMU's own count of what it has done (query-blockstats), at the beginning and the end of
some seconds: neither the guest's clock nor its caches have a part in it. A busy host may keep the guest from
using all that it may: `free` says how much it can.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from bench.lib.lab import Lab
from bench.lib.sample import Budget, Sample, timed_ms
from innkeeper.client.client import Client
from innkeeper.client.instance import Instance

KIB, MIB = 1 << 10, 1 << 20
DISK_MIB = 64
LEAST, MOST = 95.0, 105.0  # percent of what was set
SETTLE_S = 1.0  # until what the bucket held is used up, and what the change cost
OPS, BYTES = 200, 8 * MIB
BURST, BURST_LENGTH_S = 4, 5
_LIMIT = {"ops": OPS, "bytes": BYTES}
_REQUEST_KIB = {"ops": 4, "bytes": 64}
_DIRECTIONS = {"read": ("reads",), "write": ("writes",), "total": ("reads", "writes")}
_COUNTERS = {"ops": "requests", "bytes": "bytes"}
_DD = {
    "reads": "dd if=/dev/{} of=/dev/null bs={}k count={} iflag=direct",
    "writes": "dd if=/dev/zero of=/dev/{} bs={}k count={} oflag=direct",
}


@dataclass(frozen=True)
class Guest:
    client: Client
    instance: Instance


@dataclass(frozen=True)
class Load:
    """What the guest does meanwhile, and what of it counts."""

    disks: tuple[str, ...]  # data0 is vda, data1 vdb
    kinds: tuple[str, ...]  # reads, writes
    unit: str

    def commands(self) -> list[str]:
        size = _REQUEST_KIB[self.unit]
        count = DISK_MIB * KIB // size
        names = {"data0": "vda", "data1": "vdb"}
        return [_DD[kind].format(names[disk], size, count) for disk in self.disks for kind in self.kinds]


def run(lab: Lab) -> list[Sample]:
    # No multiple of the time between two requests: else the count is the same whatever the phase, and a
    # run of two seconds seems to be exact to four digits.
    seconds, rounds = (1.933, 1) if lab.quick else (9.713, 3)
    samples: list[Sample] = []
    with ExitStack() as stack:
        vm = _guest(lab, stack)
        free = {unit: _free(vm, unit, seconds / 2) for unit in _LIMIT}
        for unit in _LIMIT:
            for direction, kinds in _DIRECTIONS.items():
                load = Load(("data0",), kinds, unit)
                values = [
                    _kept(vm, {f"{direction}_{unit}": _LIMIT[unit]}, load, seconds) for _ in range(rounds)
                ]
                samples += _percent(f"{direction}-{unit}", values, f"of {_shown(unit)}, over {seconds:g} s")
        samples += _shared(vm, seconds, rounds)
        samples += _bursts(vm, rounds)
        samples += _changes(vm, rounds)
        again = {unit: _free(vm, unit, seconds / 2) for unit in _LIMIT}
    for unit in _LIMIT:
        note = "before any limit was set; what was measured above is part of this"
        name = f"qos_disk.free-{unit}"
        per = 1.0 if unit == "ops" else float(MIB)
        text = "ops/s" if unit == "ops" else "MiB/s"
        samples.append(Sample(name, text, [free[unit] / per], note=note))
        samples.append(Sample(f"{name}-again", text, [again[unit] / per], note="all limits taken away again"))
    return samples


def _shown(unit: str) -> str:
    return f"{OPS}/s" if unit == "ops" else f"{BYTES // MIB} MiB/s"


def _percent(name: str, values: list[float], note: str) -> list[Sample]:
    """Twice, since a budget has one side."""
    return [
        Sample(f"qos_disk.{name}", "%", values, Budget(MOST), note),
        Sample(f"qos_disk.{name}-least", "%", values, Budget(LEAST, at_least=True)),
    ]


def _guest(lab: Lab, stack: ExitStack) -> Guest:
    disks = [{"name": f"data{number}", "size": f"{DISK_MIB}MiB"} for number in (0, 1)]
    spec = {"image": "tiny", "networks": [], "disks": disks}
    client = lab.daemon.client
    instance = client.instances.create(spec, name="limits", start=True, wait="ready")
    stack.callback(instance.remove, force=True)
    vm = Guest(client, instance)
    # Blocks that were never written are read from nowhere.
    for disk in ("vda", "vdb"):
        _sh(vm, f"dd if=/dev/zero of=/dev/{disk} bs=1M count={DISK_MIB} oflag=direct")
    return vm


def _sh(vm: Guest, script: str) -> None:
    done = vm.instance.exec(["sh", "-c", script])
    if done.status:
        raise RuntimeError(f"{script} in the guest: {done.stderr.decode(errors='replace')[-200:]}")


@contextmanager
def _loaded(vm: Guest, load: Load) -> Iterator[None]:
    """The guest reads and writes as fast as it can meanwhile."""
    loops = "".join(f"(while [ -e /go ]; do {one}; done) >/dev/null 2>&1 & " for one in load.commands())
    _sh(vm, f"touch /go; {loops}")
    try:
        yield
    finally:
        _limit(vm, {})
        _sh(vm, "rm /go; killall dd; while killall -0 dd 2>/dev/null; do sleep 0.05; done")


def _limit(vm: Guest, limits: Mapping[str, Any]) -> None:
    """Of all its disks together; what is not named is none."""
    spec = vm.instance.refresh().data["spec"]
    spec["qos"]["disk"] = dict(limits)
    vm.client.instances.apply(vm.instance.name, spec)


def _count(vm: Guest, load: Load) -> tuple[float, list[int]]:
    """When, and what each disk has done by then. The counters are read first of all."""
    at = time.monotonic()
    found = {one["name"]: one for one in vm.instance.inspect_disk()["disks"]}
    counter = _COUNTERS[load.unit]
    return at, [sum(found[disk][kind][counter] for kind in load.kinds) for disk in load.disks]


def _rates(vm: Guest, load: Load, seconds: float) -> list[float]:
    """Of each disk, a second."""
    begun, before = _count(vm, load)
    time.sleep(max(0.0, begun + seconds - time.monotonic()))
    ended, after = _count(vm, load)
    return [(late - early) / (ended - begun) for early, late in zip(before, after, strict=True)]


def _free(vm: Guest, unit: str, seconds: float) -> float:
    load = Load(("data0",), ("reads",), unit)
    with _loaded(vm, load):
        return _rates(vm, load, seconds)[0]


def _kept(vm: Guest, limits: Mapping[str, Any], load: Load, seconds: float) -> float:
    with _loaded(vm, load):
        _limit(vm, limits)
        time.sleep(SETTLE_S)
        return sum(_rates(vm, load, seconds)) / _LIMIT[load.unit] * 100


def _shared(vm: Guest, seconds: float, rounds: int) -> list[Sample]:
    load = Load(("data0", "data1"), ("reads",), "ops")
    sums, smaller = [], []
    for _ in range(rounds):
        with _loaded(vm, load):
            _limit(vm, {"total_ops": OPS})
            time.sleep(SETTLE_S)
            rates = _rates(vm, load, seconds)
            sums.append(sum(rates) / OPS * 100)
            smaller.append(min(rates) / sum(rates) * 100)
    return [
        *_percent("two-disks", sums, f"two disks that share {OPS}/s, together"),
        Sample("qos_disk.two-disks-smaller", "%", smaller, note="of that, the disk with less; 50 is equal"),
    ]


def _bursts(vm: Guest, rounds: int) -> list[Sample]:
    """From the moment it is set: so much of the burst's length as fits, then what it is after the burst."""
    found: list[Sample] = []
    for unit in _LIMIT:
        load, name, set_to = Load(("data0",), ("reads",), unit), f"total_{unit}", _LIMIT[unit] // BURST
        limits = {name: set_to, f"{name}_burst": set_to * BURST, f"{name}_burst_length": BURST_LENGTH_S}
        during, after = [], []
        for _ in range(rounds):
            with _loaded(vm, load):
                _limit(vm, limits)
                during.append(_rates(vm, load, BURST_LENGTH_S - 0.5)[0] / (set_to * BURST) * 100)
                # It is filled while it is used, so it lasts longer: burst x length / (burst - limit).
                time.sleep(BURST_LENGTH_S * BURST / (BURST - 1) - BURST_LENGTH_S + 2)
                after.append(_rates(vm, load, BURST_LENGTH_S)[0] / set_to * 100)
        note = f"the first {BURST_LENGTH_S - 0.5:g} s of a burst of {BURST_LENGTH_S} s to {_shown(unit)}"
        found += _percent(f"burst-{unit}", during, note)
        found += _percent(f"after-burst-{unit}", after, f"a {BURST}th of {_shown(unit)}, once it is over")
    return found


def _changes(vm: Guest, rounds: int) -> list[Sample]:
    """Down and up again under load: how long the call takes, and the rate of the second that follows."""
    load = Load(("data0",), ("reads",), "ops")
    took_ms: list[float] = []
    then: list[float] = []

    def change(limit: int) -> Callable[[], None]:
        return lambda: _limit(vm, {"total_ops": limit})

    with _loaded(vm, load):
        for _ in range(rounds):
            for limit in (OPS // 4, OPS):
                took_ms.append(timed_ms(change(limit)))
                then.append(_rates(vm, load, 1.0)[0] / limit * 100)
    return [
        Sample("qos_disk.change", "ms", took_ms, Budget(1000), "until the call returns, requests waiting"),
        Sample("qos_disk.changed", "%", then, note="of the new limit, in the first second after that"),
    ]
