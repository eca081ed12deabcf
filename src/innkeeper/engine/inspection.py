"""What a running VM says of itself, for those who look into it: the seam below `inn inspect`.

Nothing here halts a VM or changes it. Every call has a deadline and raises EngineError when it is not met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from innkeeper.engine.throttle import Throttle
from innkeeper.inspect.registers import Registers


@dataclass(frozen=True)
class Vcpu:
    index: int
    thread_id: int
    path: str  # QEMU's own name of it
    topology: Mapping[str, int]  # socket-id, core-id, ...


@dataclass(frozen=True)
class Region:
    """A range of guest-physical addresses and what answers there. `host` is where its first byte lies in the
    VM's process, 0 for a device."""

    start: int
    end: int  # exclusive
    kind: str  # ram, rom, i/o, ...
    name: str
    offset: int = 0  # in its block, which the name is of
    host: int = 0

    @property
    def is_memory(self) -> bool:
        return self.host != 0


@dataclass(frozen=True)
class AddressSpace:
    """The regions of guest-physical addresses in order, and the sizes of the blocks that are the guest's
    RAM (the rest is firmware and video memory)."""

    regions: Sequence[Region]
    ram_bytes: Mapping[str, int]

    def at(self, address: int) -> Region | None:
        for region in self.regions:
            if region.start <= address < region.end:
                return region
        return None

    @property
    def ram(self) -> list[Region]:
        return [one for one in self.regions if one.is_memory and one.name in self.ram_bytes]


@dataclass(frozen=True)
class BlockNode:
    """One node of QEMU's block graph."""

    name: str
    driver: str
    virtual_bytes: int
    allocated_bytes: int
    readonly: bool
    direct: bool
    no_flush: bool
    bitmaps: Sequence[Mapping[str, Any]] = ()
    detect_zeroes: str = "off"


@dataclass(frozen=True)
class BlockDevice:
    """A disk as the guest has it. `stats` are QEMU's counters since it started (BlockDeviceStats); None for
    `in_flight` when QEMU cannot tell."""

    node: str
    path: str
    io_status: str
    writeback: bool
    stats: Mapping[str, Any]
    in_flight: int | None
    throttle: Throttle | None = None


@dataclass(frozen=True)
class Nic:
    """A network card: what its receive filter lets in, where the device says, and its other end on the
    host, where that is a process of its own."""

    name: str
    connected: bool | None  # None when QEMU does not say
    filter: Mapping[str, Any] = field(default_factory=dict)
    backend_pid: int | None = None
    waiting_bytes: int | None = None  # sent to the guest, and not taken by QEMU yet


class Inspection(Protocol):
    async def registers(self) -> list[Registers]:
        """Of all vCPUs, in one answer; empty for a guest that is no x86."""

    async def vcpus(self) -> list[Vcpu]: ...

    async def physical_bits(self, vcpu: Vcpu) -> int:
        """MAXPHYADDR of a vCPU."""

    async def gigabyte_pages(self, vcpu: Vcpu) -> bool: ...

    async def address_space(self, *, smm_of: int | None = None) -> AddressSpace:
        """As all vCPUs see it, or one in system management mode."""

    async def read_physical(self, address: int, size: int) -> bytes:
        """Guest-physical memory by way of QEMU: slow, and possible where the process cannot be read."""

    async def disassemble(self, cpu: int, address: int, count: int) -> list[str]: ...

    async def balloon_bytes(self) -> int | None:
        """What the guest has of its memory; None without a balloon."""

    async def kvm_counters(self) -> dict[str, dict[str, int]]:
        """By a vCPU's path; empty where there is no KVM or it keeps none."""

    async def block_nodes(self) -> dict[str, BlockNode]: ...

    async def block_devices(self) -> list[BlockDevice]: ...

    async def nics(self) -> list[Nic]: ...
