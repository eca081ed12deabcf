"""A host: what its agent found there. Written under the daemon's lease, gone when the daemon is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from innkeeper.spec.base import Model
from innkeeper.spec.overcommit import HostSettings, KsmReport

KvmVerdict = Literal["hardware", "emulated", "broken", "missing"]


class HugePages(Model):
    """A pool of huge pages of one size."""

    page_bytes: int
    total: int = Field(description="Pages reserved.")
    free: int = Field(description="Pages nobody has taken, at `observed_at`.")
    reserved: int = Field(
        default=0, description="Free ones that are promised already; of a host with several nodes not known."
    )


class HostNode(Model):
    """A NUMA node. A host without NUMA is one node, 0."""

    id: int
    cpus: tuple[int, ...] = Field(default=(), description="Online CPUs; none: a node with memory only.")
    memory_bytes: int = 0
    free_bytes: int = 0
    available_bytes: int = Field(
        default=0, description="What can be taken without swapping, at `observed_at`; no huge pages."
    )
    hugepages: tuple[HugePages, ...] = ()
    distances: tuple[int, ...] = Field(
        default=(), description="To every node, in the order of their ids; 10 is itself, 20 twice as far."
    )


class ForeignQemu(Model):
    """A QEMU for guests of another architecture than the host's."""

    qemu: str
    qemu_version: str = ""
    machine_types: tuple[str, ...] = ()
    machine_aliases: dict[str, str] = Field(default_factory=dict)


class QosSupport(Model):
    """Why shares, reservations and limits of CPU and memory cannot be kept here, and shares of disks (`io`);
    empty: they can. Limits of disks always are."""

    cpu: str = ""
    memory: str = ""
    io: str = ""
    memory_version: Literal[0, 1, 2] = Field(
        default=0, description="Of the control groups that bound memory: 1 guarantees none. 0: not known."
    )
    hint: str = Field(default="", description="How to get what is missing; empty: nothing is.")


class HostFacts(Model):
    """What placement decides by, and what `inn host show` prints. `extra` is for people only."""

    architecture: str = "x86_64"
    kernel: str = ""
    cpus: int = Field(default=1, description="Logical CPUs this daemon may use.")
    cpu_ids: tuple[int, ...] = Field(default=(), description="The numbers of those CPUs.")
    cpu_model: str = ""
    memory_bytes: int = Field(description="Memory of the host, or of the cgroup the daemon is held to.")
    memory_available_bytes: int = Field(description="What can be taken without swapping, at `observed_at`.")
    numa: tuple[HostNode, ...] = Field(default=(), description="NUMA nodes, by id.")
    disk_free_bytes: int | None = Field(
        default=None, description="Free where the instances' disks lie, at `observed_at`; null: not known."
    )
    qemu: str = Field(default="", description="Path of QEMU; empty: there is none.")
    qemu_version: str = ""
    kvm: KvmVerdict = "missing"
    kvm_detail: str = Field(default="", description="Why the verdict is what it is, one line.")
    kvm_repair: str = Field(default="", description="What would make it work, if anything.")
    kvm_instructions_per_s: float = 0.0
    paging: Literal["", "ept", "npt", "shadow"] = Field(
        default="",
        description="Who translates guest addresses under KVM: the CPU, by Intel's `ept` or AMD's `npt`; or"
        " KVM, by `shadow` page tables. Empty: no KVM module says.",
    )
    thp_of_files: str = Field(
        default="",
        description="When the host makes transparent huge pages of memory files, which guest RAM is: the "
        "kernel's word, such as `advise` or `never`. Empty: it has none.",
    )
    machine_types: tuple[str, ...] = Field(default=(), description="Versioned machine types QEMU has.")
    machine_aliases: dict[str, str] = Field(
        default_factory=dict, description="What `q35`, `pc`, ... stand for: alias to versioned type."
    )
    foreign: dict[str, ForeignQemu] = Field(
        default_factory=dict, description="For guests of other architectures, which are emulated."
    )
    qos: QosSupport = QosSupport()
    extra: dict[str, Any] = Field(default_factory=dict)


class HostRecord(Model):
    """What the store keeps of a host."""

    name: str
    machine_id: str = Field(default="", description="Of /etc/machine-id: which machine this is.")
    boot_id: str = Field(default="", description="Of the running kernel: changes with each boot.")
    observed_at: float = Field(default=0.0, description="When the facts were taken, seconds since the epoch.")
    facts: HostFacts
    settings: HostSettings = HostSettings()
    ksm: KsmReport | None = Field(default=None, description="null: this kernel merges no pages.")
