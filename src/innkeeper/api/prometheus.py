"""Metrics in the text format of Prometheus (exposition formats, version 0.0.4). Pure.

Counters where there is one: whoever reads them makes rates over the time he likes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from innkeeper.spec.metrics import HostMetrics, InstanceMetrics, Metrics
from innkeeper.spec.overcommit import Account, KsmReport

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_Sample = tuple[str, float | int | None]  # labels, value; None: not known, left out
_Family = tuple[str, str, str, Iterable[_Sample]]  # name, type, help, samples

_TOTALS: Final = {
    "cpu_seconds": "CPU time used by the process of the VM.",
    "wait_seconds": "Time in which vCPUs could have run and no CPU was free.",
    "minor_faults": "Page faults without a disk.",
    "major_faults": "Page faults that waited for a disk.",
    "disk_read_bytes": "Read from disks by the guest.",
    "disk_write_bytes": "Written to disks by the guest.",
    "disk_read_ops": "Read requests of the guest.",
    "disk_write_ops": "Write requests of the guest.",
    "network_rx_bytes": "Received by the guest.",
    "network_tx_bytes": "Sent by the guest.",
    "network_rx_packets": "Packets received by the guest.",
    "network_tx_packets": "Packets sent by the guest.",
    "kvm_exits": "Exits from guest mode under KVM.",
}
_MEMORY: Final = {
    "given": "Memory the guest was given.",
    "resident": "Memory of the VM in the host's memory.",
    "proportional": "Resident memory with shared pages divided by their users.",
    "private": "Resident memory nobody else has.",
    "shared": "Resident memory others have as well.",
    "swapped": "Memory of the VM in swap.",
    "growth": "Memory the VM could still take of the host.",
    "balloon": "Memory the VM's balloon leaves its guest.",
    "guest_available": "What the guest could use without swapping.",
    "working_set": "What the guest cannot do without.",
}


def exposition(metrics: Metrics, owed: Account | None = None, ksm: KsmReport | None = None) -> str:
    lines = []
    host = metrics.host.name
    families = (*_host(metrics.host), *_owed(host, owed), *_ksm(host, ksm), *_instances(metrics.instances))
    for name, kind, text, samples in families:
        known = [(labels, value) for labels, value in samples if value is not None]
        if known:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{{{labels}}} {_number(value)}" for labels, value in known]
    return "\n".join(lines) + "\n"


def _host(host: HostMetrics) -> Iterator[_Family]:
    labels = _labels(host=host.name)
    gauges: dict[str, tuple[str, float | int | None]] = {
        "cpus": ("CPUs online.", host.cpus),
        "cpus_used": ("CPUs in use.", host.used),
        "cpus_stolen": ("CPUs taken by whoever runs this host as a VM.", host.stolen),
        "memory_bytes": ("Memory of the host.", host.memory_bytes),
        "memory_available_bytes": ("Memory that can be taken without swapping.", host.memory_available_bytes),
    }
    for name, (text, value) in gauges.items():
        yield f"innkeeper_host_{name}", "gauge", text, [(labels, value)]
    if host.pressure is not None:
        pressure = host.pressure
        yield (
            "innkeeper_host_pressure_ratio",
            "gauge",
            "Share of the time in which something waited (PSI, some).",
            [
                (_labels(host=host.name, resource=what), getattr(pressure, what))
                for what in ("cpu", "memory", "io")
            ],
        )


def _owed(host: str, owed: Account | None) -> Iterator[_Family]:
    if owed is None:
        return
    memory, labels = owed.memory, _labels(host=host)
    amounts = {
        "capacity": ("Memory the host has for VMs.", memory.capacity),
        "promised": (
            "Memory promised to running VMs.",
            memory.promised,
        ),
        "given": ("Memory running VMs are admitted with.", memory.given),
        "worst": ("Memory running VMs could take at most.", memory.worst),
    }
    for name, (text, value) in amounts.items():
        yield f"innkeeper_host_memory_{name}_bytes", "gauge", text, [(labels, value)]
    ratios = [("memory", memory.ratio), ("memory_worst", memory.worst_ratio), ("cpu", owed.cpu.ratio)]
    yield (
        "innkeeper_host_overcommit_ratio",
        "gauge",
        "Given out, as a multiple of what there is.",
        [(_labels(host=host, resource=what), ratio) for what, ratio in ratios],
    )


def _ksm(host: str, found: KsmReport | None) -> Iterator[_Family]:
    if found is None:
        return
    labels = _labels(host=host)
    gauges: dict[str, tuple[str, float | int | None]] = {
        "running": ("Whether the kernel looks for equal pages.", int(found.running)),
        "saved_bytes": ("Memory that merging equal pages saves.", found.saved_bytes),
        "profit_bytes": ("That, less what the kernel needs for it.", found.profit_bytes),
        "cpus_used": ("CPUs used by ksmd.", found.cpu),
    }
    for name, (text, value) in gauges.items():
        yield f"innkeeper_host_ksm_{name}", "gauge", text, [(labels, value)]


def _instances(instances: tuple[InstanceMetrics, ...]) -> Iterator[_Family]:
    yield (
        "innkeeper_vm_info",
        "gauge",
        "One for each VM, with what it is.",
        [
            (_labels(name=one.name, uid=one.uid, state=one.state, accelerator=one.accelerator), 1)
            for one in instances
        ],
    )
    yield (
        "innkeeper_vm_vcpus",
        "gauge",
        "vCPUs the guest was given.",
        [(_labels(name=one.name), one.cpu.given) for one in instances],
    )
    for key, text in _TOTALS.items():
        samples = [(_labels(name=one.name), one.totals.get(key)) for one in instances]
        yield f"innkeeper_vm_{key}_total", "counter", text, samples
    for key, text in _MEMORY.items():
        values = [(_labels(name=one.name), getattr(one.memory, key)) for one in instances]
        yield f"innkeeper_vm_memory_{key}_bytes", "gauge", text, values
    yield (
        "innkeeper_vm_thread_cpus_used",
        "gauge",
        "CPUs used by a thread of the VM in the last interval.",
        [
            (_labels(name=one.name, thread=thread.name), thread.used)
            for one in instances
            for thread in one.cpu.threads
        ],
    )


def _labels(**values: str) -> str:
    return ",".join(f'{key}="{_escaped(value)}"' for key, value in values.items())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float | int) -> str:
    return repr(round(value, 6)) if isinstance(value, float) else str(value)
