"""A host: what its agent found there. Written under the daemon's lease, gone when the daemon is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from innkeeper.spec.base import Model

KvmVerdict = Literal["hardware", "emulated", "broken", "missing"]


class HostFacts(Model):
    """What placement decides by, and what `inn host show` prints. `extra` is for people only."""

    architecture: str = "x86_64"
    kernel: str = ""
    cpus: int = Field(default=1, description="Logical CPUs this daemon may use.")
    cpu_model: str = ""
    memory_bytes: int = Field(description="Memory of the host, or of the cgroup the daemon is held to.")
    memory_available_bytes: int = Field(description="What can be taken without swapping, at `observed_at`.")
    disk_free_bytes: int | None = Field(
        default=None, description="Free where the instances' disks lie, at `observed_at`; null: not known."
    )
    qemu: str = Field(default="", description="Path of QEMU; empty: there is none.")
    qemu_version: str = ""
    kvm: KvmVerdict = "missing"
    kvm_detail: str = Field(default="", description="Why the verdict is what it is, one line.")
    kvm_repair: str = Field(default="", description="What would make it work, if anything.")
    kvm_instructions_per_s: float = 0.0
    machine_types: tuple[str, ...] = Field(default=(), description="Versioned machine types QEMU has.")
    machine_aliases: dict[str, str] = Field(
        default_factory=dict, description="What `q35`, `pc`, ... stand for: alias to versioned type."
    )
    extra: dict[str, Any] = Field(default_factory=dict)


class HostRecord(Model):
    """What the store keeps of a host."""

    name: str
    machine_id: str = Field(default="", description="Of /etc/machine-id: which machine this is.")
    boot_id: str = Field(default="", description="Of the running kernel: changes with each boot.")
    observed_at: float = Field(default=0.0, description="When the facts were taken, seconds since the epoch.")
    facts: HostFacts
