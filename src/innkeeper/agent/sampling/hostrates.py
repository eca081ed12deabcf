"""From two readings of the host to what happened between them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from innkeeper.agent.sampling.accounts import DeviceSample, Paging
from innkeeper.agent.sampling.rates import (
    MIN_INTERVAL_S,
    Pressure,
    PressureRate,
    advance,
    pressure_rate,
)


@dataclass(frozen=True, slots=True)
class HostSample:
    at: float
    cpus: Mapping[int, tuple[float, float, float]]  # busy, iowait and stolen seconds of each
    pressure: Pressure | None
    paging: Paging | None = None
    merger_s: float | None = None  # CPU time of ksmd, which merges equal pages
    devices: Mapping[str, DeviceSample] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceRates:
    busy: float  # share of the time in which a request was under way
    bytes: float  # a second
    ops: float


@dataclass(frozen=True, slots=True)
class HostRates:
    interval_s: float
    used: float  # CPUs
    iowait: float
    stolen: float  # by whoever runs this host as a VM
    cpus: tuple[float, ...]
    pressure: PressureRate | None
    swapped_in: float | None = None  # pages a second
    refaults: float | None = None
    merger: float | None = None  # CPUs
    devices: Mapping[str, DeviceRates] = field(default_factory=dict)


def host_rates(before: HostSample, after: HostSample) -> HostRates | None:
    took = after.at - before.at
    if took < MIN_INTERVAL_S:
        return None
    shares = [
        tuple(min(1.0, advance(old, new) / took) for old, new in zip(before.cpus[cpu], now, strict=True))
        for cpu, now in sorted(after.cpus.items())
        if cpu in before.cpus
    ]
    return HostRates(
        interval_s=took,
        used=sum(one[0] for one in shares),
        iowait=sum(one[1] for one in shares),
        stolen=sum(one[2] for one in shares),
        cpus=tuple(one[0] for one in shares),
        pressure=pressure_rate(before.pressure, after.pressure, took),
        swapped_in=_paged(before, after, "swapped_in", took),
        refaults=_paged(before, after, "refaults", took),
        merger=None
        if before.merger_s is None or after.merger_s is None
        else min(1.0, advance(before.merger_s, after.merger_s) / took),
        devices={
            name: _device(before.devices[name], now, took)
            for name, now in after.devices.items()
            if name in before.devices
        },
    )


def _paged(before: HostSample, after: HostSample, what: str, took: float) -> float | None:
    if before.paging is None or after.paging is None:
        return None
    return advance(getattr(before.paging, what), getattr(after.paging, what)) / took


def _device(before: DeviceSample, after: DeviceSample, took: float) -> DeviceRates:
    return DeviceRates(
        busy=min(1.0, advance(before.busy_s, after.busy_s) / took),
        bytes=(advance(before.read_bytes, after.read_bytes) + advance(before.write_bytes, after.write_bytes))
        / took,
        ops=advance(before.ops, after.ops) / took,
    )
