"""The processors of an instance: how many, arranged how, and how many more may come while it runs."""

from __future__ import annotations

from typing import Final

from pydantic import Field, model_validator

from innkeeper.spec.base import Model, worded

MAX_VCPUS: Final = 255
# What is reserved for later where nobody says otherwise. It costs next to nothing: under TCG a boot to the
# guest's agent takes 1.6 to 1.8 s of processor time with 1, 2 and 8 reserved alike (64: a tenth more).
DEFAULT_RESERVE: Final = 8


class Cpu(Model):
    count: int = Field(default=1, ge=1, le=MAX_VCPUS, description="Number of vCPUs; may change live.")
    max: int | None = Field(
        default=None,
        ge=1,
        le=MAX_VCPUS,
        description="Up to how many vCPUs it may get while it runs; default: as the topology says, else 8 or"
        " `count`, where the machine can be given vCPUs at all.",
    )
    sockets: int | None = Field(default=None, ge=1, le=MAX_VCPUS, description="Processor sockets.")
    cores: int | None = Field(default=None, ge=1, le=MAX_VCPUS, description="Cores of each socket.")
    threads: int | None = Field(default=None, ge=1, le=MAX_VCPUS, description="Threads of each core.")
    model: str = Field(
        default="auto",
        pattern=worded(r"^[A-Za-z0-9._-]+$", "use letters, digits, dots, dashes and underscores"),
        description="CPU model: `auto` is `host` under KVM and `max` under TCG; else a name QEMU knows.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Cpu:
        if self.max is not None and self.count > self.max:
            raise ValueError(f"{self.count} vCPUs are more than the {self.max} that cpu.max allows")
        topology = self.topology
        if topology is None:
            return self
        sockets, cores, threads = topology
        places = sockets * cores * threads
        said = f"{_many(sockets, 'socket')} of {_many(cores, 'core')} with {_many(threads, 'thread')} each"
        if places > MAX_VCPUS:
            raise ValueError(f"{said} are {places} vCPUs; a VM has {MAX_VCPUS} at most")
        if self.max is not None and places != self.max:
            raise ValueError(f"{said} have room for {places} vCPUs, and cpu.max says {self.max}")
        if self.count > places:
            raise ValueError(f"{said} have room for {places} vCPUs, not for {self.count}")
        return self

    @property
    def topology(self) -> tuple[int, int, int] | None:
        """Sockets, cores of each and threads of each, all three; None if nothing was said of it. The one
        that is missing follows from the others and from `max` or `count`."""
        if self.sockets is None and self.cores is None and self.threads is None:
            return None
        threads = self.threads or 1
        wanted = self.max or self.count
        cores = self.cores or max(1, -(-wanted // ((self.sockets or 1) * threads)))
        sockets = self.sockets or max(1, -(-wanted // (cores * threads)))
        return sockets, cores, threads

    def reserved(self, *, hotplug: bool) -> int:
        """For how many vCPUs there is room; `hotplug`: the machine can be given more while it runs."""
        if self.topology is not None:
            sockets, cores, threads = self.topology
            return sockets * cores * threads
        if self.max is not None:
            return self.max
        return max(self.count, DEFAULT_RESERVE) if hotplug else self.count


class CpuUpdate(Model):
    """What may change on a running instance. How many vCPUs it can have was settled at its start."""

    count: int | None = Field(default=None, ge=1, le=MAX_VCPUS, description="Number of vCPUs.")


def has_hotplug(machine: str) -> bool:
    """Whether a machine type takes vCPUs while it runs (QEMU: query-hotpluggable-cpus): q35 and pc do;
    microvm, which has no ACPI slots for them, and virt of other architectures do not."""
    return machine in ("q35", "pc") or machine.startswith(("pc-q35-", "pc-i440fx-"))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
