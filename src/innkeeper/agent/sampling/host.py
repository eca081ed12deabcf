"""Reading the host itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from innkeeper.agent import sysfs
from innkeeper.agent.sampling import accounts, hostrates, proc, rates
from innkeeper.agent.sampling.files import read_whole
from innkeeper.agent.sampling.history import History
from innkeeper.agent.sampling.hostrates import HostRates, HostSample
from innkeeper.agent.sampling.rates import Pressure
from innkeeper.spec.metrics import DeviceMetrics, HostMetrics, PressureMetrics

_PRESSURES: Final = ("cpu", "memory", "io")


class HostTracker:
    def __init__(self, name: str, history: History, root: Path = Path("/")) -> None:
        self.name, self.history, self._root = name, history, root
        self.sample: HostSample | None = None
        self.rates: HostRates | None = None
        self.sampled_at = 0.0
        self.saved_at = 0.0
        self.devices: set[str] = set()  # those that disks of VMs lie on: only these are read
        self._memory: dict[str, int] = {}
        self._merger: str | None = None  # where ksmd's account is; empty: there is none

    def read(self, at: float, wall: float) -> None:
        cpus = proc.parse_host_cpus(read_whole(f"{self._root}/proc/stat"))
        after = HostSample(
            at, cpus, self._pressure(), self._paging(), self._merger_s(), self._device_samples()
        )
        before = self.sample
        if before is not None and after.at - before.at < rates.MIN_INTERVAL_S:
            return
        self._memory = sysfs.meminfo(self._root)
        self.rates = hostrates.host_rates(before, after) if before is not None else None
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

    def _paging(self) -> accounts.Paging | None:
        try:
            return accounts.parse_vmstat(read_whole(f"{self._root}/proc/vmstat"))
        except OSError:
            return None

    def _device_samples(self) -> dict[str, accounts.DeviceSample]:
        if not self.devices:
            return {}
        try:
            return accounts.parse_diskstats(read_whole(f"{self._root}/proc/diskstats"), self.devices)
        except OSError:
            return {}

    def _merger_s(self) -> float | None:
        """CPU time of ksmd; None while it does not merge."""
        if sysfs.read_text(self._root / "sys/kernel/mm/ksm/run") != "1":
            return None
        if self._merger is None:
            self._merger = _kernel_thread(self._root, "ksmd")
        try:
            return proc.parse_stat(read_whole(self._merger)).cpu_s if self._merger else None
        except OSError:
            return None

    def _values(self, found: HostRates) -> dict[str, float | None]:
        values: dict[str, float | None] = {
            "cpu": found.used,
            "iowait": found.iowait,
            "stolen": found.stolen,
            "merger": found.merger,
            "swapped_in": found.swapped_in,
            "refaults": found.refaults,
            "memory_available": self._memory.get("MemAvailable", 0),
            "memory_used": self._memory.get("MemTotal", 0) - self._memory.get("MemAvailable", 0),
            "swapped": self._memory.get("SwapTotal", 0) - self._memory.get("SwapFree", 0),
        }
        for name, device in found.devices.items():
            values |= {
                f"device_busy:{name}": device.busy,
                f"device_bytes:{name}": device.bytes,
                f"device_ops:{name}": device.ops,
            }
        if found.pressure is not None:
            values |= {
                "pressure_cpu": found.pressure.cpu,
                "pressure_memory": found.pressure.memory,
                "pressure_io": found.pressure.io,
            }
        return values

    def metrics(self, used_by_vms: float = 0.0) -> HostMetrics:
        found = self.rates
        return HostMetrics(
            name=self.name,
            at=self.sampled_at,
            interval_s=found.interval_s if found else None,
            cpus=len(self.sample.cpus) if self.sample else 0,
            used=found.used if found else None,
            iowait=found.iowait if found else None,
            stolen=found.stolen if found else None,
            other=max(0.0, found.used - used_by_vms) if found else None,
            per_cpu=found.cpus if found else (),
            load=os.getloadavg(),
            memory_bytes=self._memory.get("MemTotal", 0),
            memory_available_bytes=self._memory.get("MemAvailable", 0),
            swap_bytes=self._memory.get("SwapTotal", 0),
            swap_free_bytes=self._memory.get("SwapFree", 0),
            pressure=pressure_metrics(found.pressure if found else None),
            merger=found.merger if found else None,
            swapped_in=found.swapped_in if found else None,
            refaults=found.refaults if found else None,
            devices={
                name: DeviceMetrics(busy=one.busy, bytes=one.bytes, ops=one.ops)
                for name, one in sorted(found.devices.items())
            }
            if found
            else {},
        )


def pressure_metrics(found: rates.PressureRate | None) -> PressureMetrics | None:
    return None if found is None else PressureMetrics(cpu=found.cpu, memory=found.memory, io=found.io)


def _kernel_thread(root: Path, name: str) -> str:
    """Path of the account of the kernel's own thread of that name: one without a command line."""
    for folder in (root / "proc").glob("[0-9]*"):
        if sysfs.read_text(folder / "comm") == name and not sysfs.read_text(folder / "cmdline"):
            return f"{folder}/stat"
    return ""
