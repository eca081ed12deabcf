"""What VMs and their host do right now, and did: the answers of the metrics API.

Rates are averages since the reading before. CPU is counted in CPUs: 1.0 is one CPU all the time. null is
"not known": nothing was read twice yet, or this kernel, accelerator or guest does not count it.
"""

from __future__ import annotations

from pydantic import Field

from innkeeper.spec.base import Model


class ThreadMetrics(Model):
    """One thread of QEMU."""

    name: str = Field(description="vcpu0, vcpu1, ...; emulator: QEMU's main loop; or an iothread's name.")
    kind: str = Field(description="vcpu, emulator or iothread.")
    tid: int = Field(description="Its thread id on the host.")
    used: float = Field(description="Of a CPU, 0 to 1.")
    waited: float | None = Field(
        default=None,
        description="Share of the time in which it could have run but no CPU of the host was free. Of a vCPU "
        "under KVM the guest sees the same as steal; under TCG it sees nothing of it.",
    )


class CpuMetrics(Model):
    given: int = Field(description="vCPUs.")
    used: float | None = Field(default=None, description="CPUs used by the whole process.")
    emulator: float | None = Field(default=None, description="Of these, beside vCPUs and iothreads.")
    waited: float | None = Field(default=None, description="`waited` of all vCPUs, added up.")
    throttled: float | None = Field(
        default=None, description="Share of the time in which its CPU limit held it; null: it has none."
    )
    threads: tuple[ThreadMetrics, ...] = ()


class MemoryMetrics(Model):
    """Bytes. What needs a walk over all page tables is read seldom; `age_s` says how long ago."""

    given: int = Field(description="What the guest was given.")
    resident: int | None = Field(default=None, description="In the host's memory, QEMU itself included.")
    proportional: int | None = Field(
        default=None, description="The same with shared pages divided by their number of users (PSS)."
    )
    private: int | None = Field(default=None, description="Of the resident, what nobody else has.")
    shared: int | None = Field(default=None, description="Of the resident, what others have as well.")
    swapped: int | None = None
    huge: int | None = Field(default=None, description="Of the resident, in huge pages.")
    merged: int | None = Field(default=None, description="Of the resident, merged by KSM.")
    balloon: int | None = Field(
        default=None, description="What its balloon leaves the guest; null: it has none."
    )
    growth: int | None = Field(
        default=None,
        description="What it could still take of the host; of a fork, each page not written yet.",
    )
    age_s: float | None = None


class FaultMetrics(Model):
    """Page faults of the process, a second: major ones waited for a disk."""

    minor: float
    major: float


class DiskMetrics(Model):
    """A second, of all its disks together, as the guest sees them."""

    read_bytes: float
    write_bytes: float
    read_ops: float
    write_ops: float
    flush_ops: float
    age_s: float = Field(description="How long ago they were read.")


class NetworkMetrics(Model):
    """A second; rx is what the guest received."""

    rx_bytes: float
    tx_bytes: float
    rx_packets: float
    tx_packets: float
    source: str = Field(
        description="host: the kernel's counters of its tap; guest: what its agent says, which may lie."
    )
    age_s: float = Field(description="How long ago they were read.")


class PressureMetrics(Model):
    """Share of the time in which something waited for it (PSI, "some"), 0 to 1."""

    cpu: float
    memory: float
    io: float


class NumaMetrics(Model):
    local: float = Field(description="Share of its memory on the nodes where its vCPUs ran last, 0 to 1.")
    nodes: dict[int, int] = Field(description="Bytes on each node of the host.")


class InstanceMetrics(Model):
    name: str
    uid: str
    state: str
    accelerator: str
    pid: int
    at: float = Field(description="When it was read, seconds since the epoch; 0: not yet.")
    interval_s: float | None = Field(default=None, description="The time over which CPU is averaged.")
    cpu: CpuMetrics
    memory: MemoryMetrics
    faults: FaultMetrics | None = None
    disk: DiskMetrics | None = None
    network: NetworkMetrics | None = None
    kvm: dict[str, float] | None = Field(
        default=None,
        description="KVM's counters a second, over all vCPUs: exits (each entry ends with one), by reason "
        "(halt_exits, io_exits, mmio_exits, irq_exits, ...). null under TCG.",
    )
    pressure: PressureMetrics | None = Field(
        default=None, description="Of its cgroup; null: it has none of its own."
    )
    numa: NumaMetrics | None = None
    totals: dict[str, float] = Field(
        default_factory=dict, description="Counters since the daemon first saw this run; they never go back."
    )


class HostMetrics(Model):
    name: str
    at: float
    interval_s: float | None = None
    cpus: int = Field(description="CPUs that are online.")
    used: float | None = Field(default=None, description="CPUs in use.")
    iowait: float | None = None
    stolen: float | None = Field(default=None, description="CPUs taken by whoever runs this host as a VM.")
    per_cpu: tuple[float, ...] = ()
    load: tuple[float, float, float] = Field(description="Of 1, 5 and 15 minutes.")
    memory_bytes: int
    memory_available_bytes: int
    swap_bytes: int
    swap_free_bytes: int
    pressure: PressureMetrics | None = Field(default=None, description="null: this kernel has no PSI.")


class Metrics(Model):
    host: HostMetrics
    instances: tuple[InstanceMetrics, ...]


class History(Model):
    """Buckets of `step_s` seconds, oldest first; a time when it did not run has none. Which values there are:
    docs/howto/monitoring.md."""

    name: str
    step_s: int
    times: tuple[float, ...] = Field(description="When each bucket begins, seconds since the epoch.")
    average: dict[str, tuple[float | None, ...]] = Field(description="By value, one number for each bucket.")
    peak: dict[str, tuple[float | None, ...]] = Field(description="The highest single reading in each.")
