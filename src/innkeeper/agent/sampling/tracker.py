"""What is known of one running VM: the last readings, the rates between them, its history."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from innkeeper.agent.sampling import rates
from innkeeper.agent.sampling.files import Budget
from innkeeper.agent.sampling.history import History
from innkeeper.agent.sampling.limits import Limits, held
from innkeeper.agent.sampling.proc import Footprint
from innkeeper.agent.sampling.rates import NetworkCounters
from innkeeper.agent.sampling.reader import PROC, Placement, ProcessReader
from innkeeper.agent.tune.balloon import View
from innkeeper.engine.base import Counters, Machine
from innkeeper.guest.agent import InterfaceCounters

# Below that a VM does nothing worth asking it about: an idle Linux guest under TCG takes 0.3 to 1 %.
ACTIVE_CPUS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Schedule:
    """Seconds between two questions to a VM that is active, and to one that is not; and after the very first
    one, since a rate takes two."""

    first_s: float
    active_s: float
    quiet_s: float


class Tracker:
    """Of one VM while it runs. `open` it for a process, and again when another process is the VM."""

    def __init__(self, uid: str, history: History, budget: Budget, root: Path = PROC) -> None:
        self.uid, self.history = uid, history
        self._budget, self._root = budget, root
        self.machine: Machine | None = None
        self.reader: ProcessReader | None = None
        self.taps: tuple[str, ...] = ()
        self.devices: Mapping[str, str] = {}  # of the host, by the name of the disk that lies there
        self.limits: tuple[Limits, ...] = ()  # that its disks are held to
        self.totals: dict[str, float] = {}
        self.given: dict[str, float] = {}  # what it has to use: readings of another size are of another VM
        self.asking: dict[str, asyncio.Task[None]] = {}  # questions under way
        self.asked: dict[str, float] = {}  # when each was asked last
        self.watching: asyncio.Task[None] | None = None  # for its end
        self.balloon: View | None = None
        self.saved_at = 0.0
        self._forget()

    def _forget(self) -> None:
        """What is of one process only. Anything with _at is in seconds of the clock."""
        self.walked_at: float | None = None  # its page tables
        self.footprint: Footprint | None = None
        self.placement: Placement | None = None
        self.sample: rates.Sample | None = None
        self.sampled_at = 0.0  # seconds since the epoch
        self.rates: rates.ProcessRates | None = None
        self.counters: Counters | None = None
        self.counted_at = 0.0
        self.disk: rates.DiskRates | None = None
        self.kvm: dict[str, float] | None = None
        self.traffic: NetworkCounters | None = None
        self.traffic_at = 0.0
        self.network: rates.NetworkRates | None = None

    def open(self, machine: Machine) -> None:
        """Follow this process from now on. Raises OSError when it is not there."""
        self.close()
        self._forget()
        self.asked.clear()
        self.machine = machine
        self.reader = ProcessReader(machine.pid, self._budget, self._root)
        self.taps = self.reader.taps()

    def close(self) -> None:
        """Let go of the process; what is known stays."""
        for task in self.asking.values():
            task.cancel()
        self.asking.clear()
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        self.machine = None

    def read(self, at: float, wall: float) -> None:
        """One reading of the process, and what it says into the history. Raises OSError when it has gone."""
        assert self.reader is not None
        after = self.reader.sample(at)
        before = self.sample
        if before is not None and after.at - before.at < rates.MIN_INTERVAL_S:
            return
        found = rates.process_rates(before, after) if before is not None else None
        self.sample, self.sampled_at, self.rates = after, wall, found
        if before is None:
            self._count({"cpu_seconds": after.cpu_s})
        if found is not None:
            self._note(found, wall)

    def _note(self, found: rates.ProcessRates, wall: float) -> None:
        took = found.interval_s
        self.history.add(wall, took, self.values())
        self._count(
            {
                "cpu_seconds": found.used * took,
                "wait_seconds": (found.waited or 0.0) * took,
                "minor_faults": found.minor_faults * took,
                "major_faults": found.major_faults * took,
            }
        )

    def _count(self, more: Mapping[str, float]) -> None:
        for name, value in more.items():
            self.totals[name] = self.totals.get(name, 0.0) + value

    def counted(self, at: float, counters: Counters) -> None:
        before, took = self.counters, at - self.counted_at
        if before is None:
            self.disk, self.kvm = None, None
        elif took < rates.MIN_INTERVAL_S:
            return
        else:
            self.disk = rates.disk_rates(before, counters, took)
            self.kvm = rates.kvm_rates(before, counters, took)
        self.counters, self.counted_at = counters, at
        if self.disk is not None:
            names = ("read_bytes", "write_bytes", "read_ops", "write_ops", "flush_ops")
            self._count({f"disk_{name}": getattr(self.disk, name) * took for name in names})
        if self.kvm is not None:
            self._count({"kvm_exits": self.kvm.get("exits", 0.0) * took})

    def carried(self, at: float, traffic: NetworkCounters) -> None:
        before, took = self.traffic, at - self.traffic_at
        if before is not None and took < rates.MIN_INTERVAL_S:
            return
        self.network = rates.network_rates(before, traffic, took) if before is not None else None
        self.traffic, self.traffic_at = traffic, at
        if self.network is not None:
            names = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")
            self._count({f"network_{name}": getattr(self.network, name) * took for name in names})

    def due(self, what: str, now: float, schedule: Schedule) -> bool:
        """Whether to ask the VM about `what` now: seldom while nothing happens in it, and once more after
        something did, so that a rate of then does not stand for now."""
        if what in self.asking:
            return False
        last = self.asked.get(what)
        if last is None:
            return True
        quiet = self.rates is not None and self.rates.used < ACTIVE_CPUS and not self._moving(what)
        wait_s = schedule.quiet_s if quiet else schedule.active_s
        if self._answered_once(what):
            wait_s = schedule.first_s
        return now - last >= wait_s - 0.25

    def _answered_once(self, what: str) -> bool:
        if what == "counters":
            return self.counters is not None and self.disk is None
        return self.traffic is not None and self.network is None

    def _moving(self, what: str) -> bool:
        if what == "counters":
            return self.disk is None or self.disk.read_ops + self.disk.write_ops > 0
        return self.network is None or self.network.rx_packets + self.network.tx_packets > 0

    def values(self) -> dict[str, float | None]:
        """What the history keeps."""
        found: dict[str, float | None] = {}
        if self.rates is not None:
            found |= {
                "cpu": self.rates.used,
                "emulator": self.rates.emulator,
                "wait": self.rates.waited,
                "throttled": self.rates.throttled,
                "wait_qemu": self.rates.waited_qemu,
                "blocked": self.rates.blocked,
                "refaults": self.rates.refaults,
                "minor_faults": self.rates.minor_faults,
                "major_faults": self.rates.major_faults,
            }
            vcpus = [one for one in self.rates.threads if one.thread.kind == "vcpu"]
            found |= {one.thread.name: one.used for one in vcpus}
            if vcpus:
                demands = [rates.demand(one.used, one.waited or 0.0) for one in vcpus]
                found |= {"demand": sum(demands), "busiest": max(demands)}
            found |= self.given
            if storage := self.rates.storage:
                found["storage"] = storage.read_bytes + storage.write_bytes
            if pressure := self.rates.pressure:
                found |= {
                    "pressure_cpu": pressure.cpu,
                    "pressure_memory": pressure.memory,
                    "pressure_io": pressure.io,
                }
        if self.sample is not None:
            found["resident"] = self.sample.rss_bytes
        if self.footprint is not None:
            found |= {
                "private": self.footprint.private_bytes,
                "shared": self.footprint.shared_bytes,
                "swapped": self.footprint.swapped_bytes,
            }
        if self.balloon is not None:
            found |= {
                "balloon": self.balloon.left,
                "guest_available": self.balloon.available,
                "working_set": self.balloon.working_set,
                "guest_swap_in": self.balloon.swap_in,
                "guest_major_faults": self.balloon.major_faults,
            }
        elif self.counters is not None:
            found["balloon"] = self.counters.balloon_bytes
        if self.disk is not None:
            found |= {
                "disk_read": self.disk.read_bytes,
                "disk_write": self.disk.write_bytes,
                "disk_read_ops": self.disk.read_ops,
                "disk_write_ops": self.disk.write_ops,
            }
            found |= self._by_device(self.disk)
        if self.network is not None:
            found |= {"network_rx": self.network.rx_bytes, "network_tx": self.network.tx_bytes}
        if self.kvm is not None:
            found["exits"] = self.kvm.get("exits")
        return found

    def _by_device(self, disk: rates.DiskRates) -> dict[str, float]:
        """What its disks do to each device of the host. Where all lie on one, bytes and requests are those
        of all disks, which are kept anyway."""
        found: dict[str, float] = {}
        alone = len(set(self.devices.values())) == 1
        waiting = held(disk.each, self.limits)
        for one in disk.each:
            device = self.devices.get(one.name)
            if device:
                values = {"time": one.under_way}
                if not alone:
                    values |= {"bytes": one.bytes, "ops": one.ops}
                if self.limits:
                    values["held"] = one.under_way if one.name in waiting else 0.0
                for what, value in values.items():
                    name = f"disk_{what}:{device}"
                    found[name] = found.get(name, 0.0) + value
        for limits in self.limits:
            found |= limits.did(disk.each)
        return found


def guest_traffic(interfaces: Iterable[InterfaceCounters], macs: Iterable[str]) -> NetworkCounters | None:
    """The traffic of its NICs, as the guest counts it. A bridge or a VLAN in the guest has the address of the
    NIC below it and carries at most as much: of those with one address the busiest counts."""
    wanted = {mac.lower() for mac in macs}
    busiest: dict[str, InterfaceCounters] = {}
    for one in interfaces:
        mac = one.mac.lower()
        if mac in wanted and (mac not in busiest or _carried(one) > _carried(busiest[mac])):
            busiest[mac] = one
    if not busiest:
        return None
    return NetworkCounters(
        rx_bytes=sum(one.rx_bytes for one in busiest.values()),
        tx_bytes=sum(one.tx_bytes for one in busiest.values()),
        rx_packets=sum(one.rx_packets for one in busiest.values()),
        tx_packets=sum(one.tx_packets for one in busiest.values()),
    )


def _carried(one: InterfaceCounters) -> int:
    return one.rx_bytes + one.tx_bytes


def tap_traffic(
    taps: Iterable[str], interfaces: Mapping[str, tuple[int, int, int, int]]
) -> NetworkCounters | None:
    """What the host's end of a tap sent the guest received, and the other way round."""
    found = [interfaces[name] for name in taps if name in interfaces]
    if not found:
        return None
    return NetworkCounters(
        rx_bytes=sum(one[2] for one in found),
        tx_bytes=sum(one[0] for one in found),
        rx_packets=sum(one[3] for one in found),
        tx_packets=sum(one[1] for one in found),
    )


def local_share(placement: Placement, node_of_cpu: Mapping[int, int]) -> float | None:
    """Of its memory, what lies on the nodes where its vCPUs ran last."""
    total = sum(placement.nodes.values())
    nodes = {node_of_cpu[cpu] for cpu in placement.vcpu_cpus if cpu in node_of_cpu}
    if total == 0 or not nodes:
        return None
    return sum(size for node, size in placement.nodes.items() if node in nodes) / total
