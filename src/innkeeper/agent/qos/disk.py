"""Disk time: every VM's part of a disk of the host that is busy, as weight of its control group.

Limits of rates are QEMU's matter (engine/qemu/throttle.py); weights are the host's, and only some of its I/O
schedulers know any: BFQ, and under cgroup v2 the cost model of blk-iocost, whatever the scheduler
(Documentation/block/bfq-iosched.rst; cgroup-v2.rst, "IO Interface Files").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from innkeeper.agent import sysfs
from innkeeper.agent.context import Context
from innkeeper.agent.sampling.devices import Devices
from innkeeper.drivers.cgroup import Cgroups
from innkeeper.drivers.cgroupvalues import IoWeight, Setting, clamp_weight
from innkeeper.spec.instance import InstanceRecord
from innkeeper.spec.qos import SHARES, share_number

_NORMAL_WEIGHT: Final = 100


def decide(ctx: Context) -> dict[str, Sequence[Setting] | str]:
    """Of every VM that runs or is about to: its weight, or why that would have no effect."""
    present = {*ctx.running, *ctx.launching}
    disks = HostDisks(ctx.cgroups)
    return {record.uid: _of(ctx, record, disks) for record in ctx.records.values() if record.uid in present}


def _of(ctx: Context, record: InstanceRecord, disks: HostDisks) -> Sequence[Setting] | str:
    shares = share_number(record.spec.qos.disk.shares)
    usual = shares == SHARES["normal"]
    if why := ctx.cgroups.why_not("io"):
        return () if usual else why
    if not usual and (why := disks.why_not(_places(ctx, record))):
        return why
    return (IoWeight(weight_of(shares)),)


def weight_of(shares: int) -> int:
    """`normal` is what a group has that was told nothing."""
    return clamp_weight(shares * _NORMAL_WEIGHT / SHARES["normal"])


def _places(ctx: Context, record: InstanceRecord) -> Iterator[Path]:
    yield ctx.paths.instances
    yield from (Path(disk.path) for disk in record.spec.disks if disk.path and not disk.readonly)


def why_not(cgroups: Cgroups, places: Iterable[Path]) -> str:
    """Of the disks of the host under `places`, the first that knows no weights, and how it would; empty where
    all do."""
    return HostDisks(cgroups).why_not(places)


class HostDisks:
    """For one look at all VMs: most of them lie on the same few disks, each of which is asked once."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups, self._devices = cgroups, Devices(cgroups.root)
        self._told: dict[str, str] = {}

    def why_not(self, places: Iterable[Path]) -> str:
        for device in dict.fromkeys(self._devices.under(place) for place in places):
            if device not in self._told:
                self._told[device] = self._look(device)
            if self._told[device]:
                return self._told[device]
        return ""

    def _look(self, device: str) -> str:
        root = self._cgroups.root
        words = sysfs.read_text(root / f"sys/block/{device}/queue/scheduler").split() if device else []
        active = next((word.strip("[]") for word in words if word.startswith("[")), "")
        if active == "bfq" or (device and _has_cost_model(self._cgroups, device)):
            return ""
        if not words:
            return f"{device or 'the file system of its disks'} is no disk of this host"
        load = "" if "bfq" in words else "modprobe bfq; "
        return (
            f"the scheduler of {device} is {active or 'unknown'}, which knows no shares;"
            f" {load}echo bfq > /sys/block/{device}/queue/scheduler"
        )


def _has_cost_model(cgroups: Cgroups, device: str) -> bool:
    """Lines such as `8:16 enable=1 ctrl=auto ...`, of the root group only (cgroup-v2.rst, io.cost.qos)."""
    place = cgroups.bases.get("io")
    if place is None or place.version != 2:
        return False
    number = sysfs.read_text(cgroups.root / f"sys/block/{device}/dev")
    for above in place.path.parents:
        for line in sysfs.read_text(above / "io.cost.qos").splitlines():
            words = line.split()
            if words and words[0] == number:
                return "enable=1" in words
    return False
