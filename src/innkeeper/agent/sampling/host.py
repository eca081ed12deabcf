"""Reading the host itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from innkeeper.agent import sysfs
from innkeeper.agent.sampling import proc, rates
from innkeeper.agent.sampling.files import read_whole
from innkeeper.agent.sampling.history import History
from innkeeper.agent.sampling.rates import HostRates, HostSample, Pressure
from innkeeper.spec.metrics import HostMetrics, PressureMetrics

_PRESSURES: Final = ("cpu", "memory", "io")


class HostTracker:
    def __init__(self, name: str, history: History, root: Path = Path("/")) -> None:
        self.name, self.history, self._root = name, history, root
        self.sample: HostSample | None = None
        self.rates: HostRates | None = None
        self.sampled_at = 0.0
        self.saved_at = 0.0
        self._memory: dict[str, int] = {}

    def read(self, at: float, wall: float) -> None:
        cpus = proc.parse_host_cpus(read_whole(f"{self._root}/proc/stat"))
        after = HostSample(at, cpus, self._pressure())
        before = self.sample
        if before is not None and after.at - before.at < rates.MIN_INTERVAL_S:
            return
        self._memory = sysfs.meminfo(self._root)
        self.rates = rates.host_rates(before, after) if before is not None else None
        self.sample, self.sampled_at = after, wall
        if self.rates is not None:
            self.history.add(wall, self.rates.interval_s, self._values(self.rates))

    def _pressure(self) -> Pressure | None:
        """None where the kernel was built or booted without it (psi=0)."""
        try:
            found = [
                proc.parse_pressure(read_whole(f"{self._root}/proc/pressure/{what}")) for what in _PRESSURES
            ]
        except OSError:
            return None
        return Pressure(*found)

    def _values(self, found: HostRates) -> dict[str, float | None]:
        values: dict[str, float | None] = {
            "cpu": found.used,
            "iowait": found.iowait,
            "stolen": found.stolen,
            "memory_available": self._memory.get("MemAvailable", 0),
            "memory_used": self._memory.get("MemTotal", 0) - self._memory.get("MemAvailable", 0),
            "swapped": self._memory.get("SwapTotal", 0) - self._memory.get("SwapFree", 0),
        }
        if found.pressure is not None:
            values |= {
                "pressure_cpu": found.pressure.cpu,
                "pressure_memory": found.pressure.memory,
                "pressure_io": found.pressure.io,
            }
        return values

    def metrics(self) -> HostMetrics:
        found = self.rates
        return HostMetrics(
            name=self.name,
            at=self.sampled_at,
            interval_s=found.interval_s if found else None,
            cpus=len(self.sample.cpus) if self.sample else 0,
            used=found.used if found else None,
            iowait=found.iowait if found else None,
            stolen=found.stolen if found else None,
            per_cpu=found.cpus if found else (),
            load=os.getloadavg(),
            memory_bytes=self._memory.get("MemTotal", 0),
            memory_available_bytes=self._memory.get("MemAvailable", 0),
            swap_bytes=self._memory.get("SwapTotal", 0),
            swap_free_bytes=self._memory.get("SwapFree", 0),
            pressure=pressure_metrics(found.pressure if found else None),
        )


def pressure_metrics(found: rates.PressureRate | None) -> PressureMetrics | None:
    return None if found is None else PressureMetrics(cpu=found.cpu, memory=found.memory, io=found.io)
