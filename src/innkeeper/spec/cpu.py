"""The processors of an instance: how many, arranged how, and how many more may come while it runs."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from innkeeper.spec.base import Model, worded

MAX_VCPUS: Final = 255
MAX_HOST_CPU: Final = 8191  # NR_CPUS of the largest kernels
# What is reserved for later where nobody says otherwise. It costs next to nothing: under TCG a boot to the
# guest's agent takes 1.6 to 1.8 s of processor time with 1, 2 and 8 reserved alike (64: a tenth more).
DEFAULT_RESERVE: Final = 8


def _checked_set(text: str) -> str:
    if text:
        cpu_set(text)
    return text


# CPUs of the host, as taskset(1) writes them.
CpuSet = Annotated[str, AfterValidator(_checked_set)]
VcpuNumber = Annotated[int, Field(ge=0, lt=MAX_VCPUS)]
Feature = Annotated[
    str,
    Field(pattern=worded(r"^[+-][A-Za-z0-9][A-Za-z0-9._-]{0,63}$", "write +FLAG or -FLAG, such as +aes")),
]


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
        description="CPU model: `auto` is `host` under KVM and `max` under TCG; a level such as `x86-64-v2`;"
        " else a name QEMU knows (`inn cpu models`).",
    )
    features: tuple[Feature, ...] = Field(
        default=(),
        max_length=256,
        description="Flags to add (`+aes`) to the model or to take from it (`-avx`).",
    )
    pin: dict[VcpuNumber, CpuSet] = Field(
        default_factory=dict,
        description="On which CPUs of the host a vCPU runs, by its number; may change live.",
    )
    emulator: CpuSet = Field(
        default="", description="On which CPUs QEMU's other threads run; may change live."
    )
    iothreads: CpuSet = Field(
        default="",
        description="On which CPUs the threads of its disks run; may change live. Default: as emulator.",
    )
    paravirt: Literal["auto", "kvm", "hyperv", "none"] = Field(
        default="auto",
        description="Help for guests that know they are guests, under KVM: `kvm` for Linux, `hyperv` for"
        " Windows; `auto` goes by the image.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Cpu:
        if self.max is not None and self.count > self.max:
            raise ValueError(f"{self.count} vCPUs are more than the {self.max} that cpu.max allows")
        room = self.reserved(hotplug=True)
        if self.pin and max(self.pin) >= room:
            raise ValueError(f"cpu.pin has vCPU {max(self.pin)}; there is room for {room}, from 0 on")
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

    @property
    def is_pinned(self) -> bool:
        return bool(self.pin or self.emulator or self.iothreads)

    @property
    def host_cpus(self) -> frozenset[int]:
        """All CPUs of the host that something of it is pinned to."""
        return frozenset().union(
            *map(cpu_set, filter(None, (*self.pin.values(), self.emulator, self.iothreads)))
        )


def cpu_set(text: str) -> frozenset[int]:
    """`0-3,8` as numbers. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
            raise ValueError(f"not a list of CPUs: {text!r}; write it like 0-3,8")
        low, high = int(first), int(last or first)
        if high < low or high > MAX_HOST_CPU:
            raise ValueError(f"not a list of CPUs: {text!r}; write it like 0-3,8")
        found |= set(range(low, high + 1))
    return frozenset(found)


class CpuUpdate(Model):
    """What may change on a running instance. How many vCPUs it can have was settled at its start."""

    count: int | None = Field(default=None, ge=1, le=MAX_VCPUS, description="Number of vCPUs.")
    pin: dict[VcpuNumber, CpuSet] | None = Field(default=None, description="CPUs of the host by vCPU.")
    emulator: CpuSet | None = Field(default=None, description="CPUs of the host for QEMU's other threads.")
    iothreads: CpuSet | None = Field(default=None, description="CPUs of the host for its disks' threads.")


def has_hotplug(machine: str) -> bool:
    """Whether a machine type takes vCPUs while it runs (QEMU: query-hotpluggable-cpus): q35 and pc do;
    microvm, which has no ACPI slots for them, and virt of other architectures do not."""
    return machine in ("q35", "pc") or machine.startswith(("pc-q35-", "pc-i440fx-"))


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
