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
        default=None,
        description="Seconds a second in which a CPU limit held it, added up over the CPUs it was held on; "
        "part of `waited` as well. null: no cgroup of its own counts it.",
    )
    waited_qemu: float | None = Field(
        default=None, description="As `waited`, of QEMU's main loop and iothreads: what its disks wait for."
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
    balloon_state: str = Field(
        default="",
        description="follows: memory it leaves idle may be taken; never: by its spec; barred: it cannot be, "
        "as of a fork; silent: no driver in its guest tells of its memory; ignores: the driver gives "
        "nothing; empty: not known.",
    )
    balloon_target: int | None = Field(default=None, description="What its balloon was last asked to leave.")
    guest_available: int | None = Field(
        default=None, description="What its guest could use without swapping, by its balloon driver."
    )
    working_set: int | None = Field(
        default=None, description="What its guest cannot do without: what it has, less what is available."
    )
    guest_swap_in: float | None = Field(
        default=None, description="Bytes a second that its guest swaps in: it has too little."
    )
    age_s: float | None = None


class FaultMetrics(Model):
    """Page faults of the process, a second: major ones waited for a disk."""

    minor: float
    major: float
    refaults: float | None = Field(
        default=None,
        description="Pages a second read back soon after they were evicted for want of memory; null: no "
        "cgroup of its own counts them.",
    )
    blocked: float | None = Field(
        default=None,
        description="Seconds a second that vCPUs waited for pages to be read back, all together; null: the "
        "host does not count it (kernel.task_delayacct).",
    )


class DiskMetrics(Model):
    """A second, of all its disks together, as the guest sees them."""

    read_bytes: float
    write_bytes: float
    read_ops: float
    write_ops: float
    flush_ops: float
    read_s: float | None = Field(
        default=None, description="Seconds a read took on average, waiting for a limit included; null: none."
    )
    write_s: float | None = Field(default=None, description="The same of a write.")
    flush_s: float | None = Field(default=None, description="The same of a flush.")
    under_way: float = Field(default=0.0, description="Requests at the same time, on average.")
    age_s: float = Field(description="How long ago they were read.")


class StorageMetrics(Model):
    """Bytes a second that really went from or to the host's storage, past its page cache."""

    read_bytes: float
    write_bytes: float


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
    storage: StorageMetrics | None = None
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


class DeviceMetrics(Model):
    """A block device of the host."""

    busy: float = Field(description="Share of the time in which a request was under way, 0 to 1.")
    bytes: float = Field(description="Read and written a second.")
    ops: float = Field(description="Requests a second.")


class HostMetrics(Model):
    name: str
    at: float
    interval_s: float | None = None
    cpus: int = Field(description="CPUs that are online.")
    used: float | None = Field(default=None, description="CPUs in use.")
    iowait: float | None = None
    stolen: float | None = Field(default=None, description="CPUs taken by whoever runs this host as a VM.")
    other: float | None = Field(
        default=None, description="Of the CPUs in use, by anything but VMs of this daemon."
    )
    merger: float | None = Field(
        default=None, description="Of these, by the kernel's merging of equal pages (ksmd); null: it is off."
    )
    per_cpu: tuple[float, ...] = ()
    load: tuple[float, float, float] = Field(description="Of 1, 5 and 15 minutes.")
    memory_bytes: int
    memory_available_bytes: int
    swap_bytes: int
    swap_free_bytes: int
    swapped_in: float | None = Field(default=None, description="Pages a second.")
    refaults: float | None = Field(
        default=None, description="Pages a second read back soon after they were evicted."
    )
    devices: dict[str, DeviceMetrics] = Field(
        default_factory=dict, description="By name, those that disks of VMs lie on."
    )
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
