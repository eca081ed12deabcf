"""How exact limits, reservations and shares of CPU time are, with 2, 4 and 8 VMs that never rest.

Each VM has two vCPUs and a loop on each. What it got is the kernel's account of its control group, over 10 s;
samples are errors in percent. Limits are reserved as well and reservations are promises, so both must hold
whatever else the machine does; ratios are among the VMs themselves.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.lib.lab import Lab
from bench.lib.sample import Budget, Sample
from innkeeper.client.instance import Instance
from innkeeper.drivers import cgrouptree
from innkeeper.drivers.cgroup import Cgroups, Group, Place
from innkeeper.drivers.cgroupfiles import SystemFiles
from innkeeper.errors import InnkeeperError
from innkeeper.spec.sharing import kept_millicores

COUNTS = (2, 4, 8)
EXACT = Budget(2.0)
RATIO = Budget(5.0)
EFFECT = Budget(1000.0)
SPEC = {"image": "tiny", "memory": {"size": "128MiB"}, "cpu": {"count": 2}, "networks": []}
LOOPS = "for i in 1 2; do (while :; do :; done) >/dev/null 2>&1 & done"
# Until weights have been corrected a few times.
SETTLE_S = 5.0
# What shares are given out, over and over.
SHARES = (2000, 1000, 500, 500)
# Of what the host has for VMs; the limits of all together, and what the first VM reserves.
LIMITED_PART, RESERVED_PART = 0.8, 0.5


def run(lab: Lab) -> list[Sample]:
    if os.geteuid() != 0:
        raise RuntimeError("needs control groups, as root has them")
    seconds = lab.count(10, 2)
    cpus = len(os.sched_getaffinity(0))
    capacity = cpus - kept_millicores(cpus) / 1000
    samples: list[Sample] = []
    counts = COUNTS[:1] if lab.quick else COUNTS
    with _busy(lab, max(counts)) as vms:
        for count in counts:
            some, idle = vms[:count], vms[count:]
            for vm in idle:
                _set(vm, shares="normal", reservation=0, limit="")
                vm.pause()
            note = f"{count} busy VMs on {cpus} CPUs, load {os.getloadavg()[0]:.1f}, over {seconds} s"
            samples += [
                Sample(f"qos_cpu.limit-{count}", "%", _limits(lab, some, capacity, seconds), EXACT, note),
                Sample(
                    f"qos_cpu.reserved-{count}", "%", _reserved(lab, some, capacity, seconds), EXACT, note
                ),
                Sample(f"qos_cpu.ratio-{count}", "%", _ratios(lab, some, seconds), RATIO, note),
            ]
            for vm in idle:
                vm.resume()
        samples.append(Sample("qos_cpu.effect", "ms", _effects(lab, vms[0]), EFFECT, "of another limit"))
    return samples


@contextmanager
def _busy(lab: Lab, count: int) -> Iterator[list[Instance]]:
    """One is booted, the others are its forks; then all are made busy. A copy of one that is busy would leave
    the next little of the CPUs while that is made."""
    instances = lab.daemon.client.instances
    parent = instances.create(SPEC, name="spin", start=True, wait="ready")
    try:
        parent.fork(count=count - 1)
        vms = [parent, *(instances.handle(f"spin-{number}") for number in range(1, count))]
        for vm in vms:
            vm.exec(["sh", "-c", LOOPS])
        yield vms
    finally:
        for name in ("spin", *(f"spin-{number}" for number in range(1, count))):
            with suppress(InnkeeperError):
                instances.handle(name).remove(force=True)


def _set(vm: Instance, **qos: Any) -> None:
    vm.update({"qos": {"cpu": qos}})


def _group(lab: Lab, vm: Instance) -> Group:
    state, shown = lab.daemon.state, vm.refresh().data
    bases = Cgroups.detect(state).bases
    found = cgrouptree.of_process(Path("/"), shown["pid"], shown["uid"])
    places = {controller: Place(bases[controller].version, path) for controller, path in found.items()}
    return Group(shown["uid"], places, SystemFiles())


def _used(group: Group) -> float:
    used = group.cpu_s()
    if used is None:
        raise RuntimeError("the kernel keeps no account of the VM's CPU time")
    return used


def _cores(lab: Lab, vms: Sequence[Instance], seconds: float) -> list[float]:
    """What each used, in cores."""
    groups = [_group(lab, vm) for vm in vms]
    time.sleep(SETTLE_S)
    begun, before = time.monotonic(), [_used(group) for group in groups]
    time.sleep(seconds)
    after, took = [_used(group) for group in groups], time.monotonic() - begun
    return [(late - early) / took for early, late in zip(before, after, strict=True)]


def _limits(lab: Lab, vms: Sequence[Instance], capacity: float, seconds: float) -> list[float]:
    """Limits that differ, all of which the host can give at once."""
    parts = range(1, len(vms) + 1)
    limits = [int(1000 * LIMITED_PART * capacity * part / sum(parts)) for part in parts]
    for vm in vms:
        _set(vm, shares="normal", reservation=0, limit="")
    for vm, limit in zip(vms, limits, strict=True):
        _set(vm, limit=f"{limit}m", reservation=f"{limit}m")
    got = _cores(lab, vms, seconds)
    return [abs(cores * 1000 / limit - 1) * 100 for cores, limit in zip(got, limits, strict=True)]


def _reserved(lab: Lab, vms: Sequence[Instance], capacity: float, seconds: float) -> list[float]:
    """What one with few shares lacks of its reservation, while all the others have many."""
    for vm in vms:
        _set(vm, shares="high", reservation=0, limit="")
    wanted = int(1000 * RESERVED_PART * capacity)
    _set(vms[0], shares="low", reservation=f"{wanted}m")
    got = [_cores(lab, vms[:1], seconds)[0] for _ in range(lab.count(3, 1))]
    return [max(0.0, 1 - cores * 1000 / wanted) * 100 for cores in got]


def _ratios(lab: Lab, vms: Sequence[Instance], seconds: float) -> list[float]:
    """How far each one's part of what all got is from its part of all shares."""
    shares = [SHARES[index % len(SHARES)] for index in range(len(vms))]
    for vm, number in zip(vms, shares, strict=True):
        _set(vm, shares=number, reservation=0, limit="")
    got = _cores(lab, vms, seconds)
    parts = [number / sum(shares) for number in shares]
    return [abs(cores / sum(got) / part - 1) * 100 for cores, part in zip(got, parts, strict=True)]


def _effects(lab: Lab, vm: Instance) -> list[float]:
    """From the request for a lower limit until what the VM uses in a second is within it."""
    found = []
    _set(vm, shares="high", reservation="1000m", limit="1000m")
    group = _group(lab, vm)
    for _ in range(lab.count(5, 1)):
        _set(vm, reservation="1000m", limit="1000m")
        time.sleep(1.0)
        points: dict[float, float] = {}
        end = threading.Event()
        watching = threading.Thread(target=_watch, args=(group, points, end))
        watching.start()
        time.sleep(0.3)
        begun = time.monotonic()
        _set(vm, reservation="200m", limit="200m")
        time.sleep(2.5)
        end.set()
        watching.join()
        found.append(_within(points, begun, 0.2 * 1.05) * 1000)
    return found


def _watch(group: Group, points: dict[float, float], end: threading.Event) -> None:
    while not end.wait(0.01):
        points[time.monotonic()] = _used(group)


def _within(points: Mapping[float, float], begun: float, limit: float) -> float:
    """How long after `begun` the first second begins in which no more than `limit` was used."""
    times = sorted(points)
    for start in times:
        later = next((one for one in times if one >= start + 1.0), None)
        if start >= begun and later is not None and points[later] - points[start] <= limit * (later - start):
            return start - begun
    return float("inf")
