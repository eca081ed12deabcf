"""A VM to look into whose process is the test's own: its RAM is a memory file mapped here, so that the
kernel's answers about it are real."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from innkeeper.engine.inspection import AddressSpace, BlockDevice, BlockNode, Nic, Region, Vcpu
from innkeeper.errors import EngineError
from innkeeper.inspect.registers import Registers, Segment

PAGE = mmap.PAGESIZE
LONG_MODE = {"CR0": 0x80000011, "CR3": 0x1000, "CR4": 0x20, "EFER": 0xD00}
Kind = Literal["shared", "private", "anonymous"]


class Ram:
    """So many pages of guest memory, at guest-physical 0."""

    def __init__(self, pages: int, kind: Kind = "shared") -> None:
        self.size = pages * PAGE
        self.fd = -1
        if kind != "anonymous":
            self.fd = os.memfd_create("test-ram")
            os.ftruncate(self.fd, self.size)
        flags = mmap.MAP_SHARED if kind == "shared" else mmap.MAP_PRIVATE
        if kind == "anonymous":
            flags |= mmap.MAP_ANONYMOUS
        self.map = mmap.mmap(self.fd, self.size, flags=flags)
        self._anchor: Any = ctypes.c_char.from_buffer(self.map)
        self.host = ctypes.addressof(self._anchor)

    def put(self, address: int, data: bytes) -> None:
        self.map[address : address + len(data)] = data

    def word(self, address: int, value: int) -> None:
        self.put(address, value.to_bytes(8, "little"))

    def in_file(self, address: int, data: bytes) -> None:
        """Written to the file, as by whoever the memory is shared with."""
        os.pwrite(self.fd, data, address)

    def close(self) -> None:
        del self._anchor
        self.map.close()
        if self.fd >= 0:
            os.close(self.fd)


def registers(cpu: int = 0, **values: int) -> Registers:
    general = {"RIP": 0, "RSP": 0, "RFL": 2, "CPL": 0, "HLT": 0, "SMM": 0, "CR2": 0, **LONG_MODE, **values}
    code = Segment(0x10, 0, 0xFFFFFFFF, 0xAF9B00)
    return Registers(cpu, general, dict.fromkeys(("CS", "SS", "DS"), code), {})


@dataclass
class FakeInspection:
    """Satisfies engine.inspection.Inspection."""

    ram: Ram | None = None
    cpus: list[Registers] = field(default_factory=lambda: [registers()])
    more: Sequence[Region] = ()
    balloon: int | None = None
    nodes: Mapping[str, BlockNode] = field(default_factory=dict)
    devices: Sequence[BlockDevice] = ()
    cards: Sequence[Nic] = ()
    counters: Mapping[str, dict[str, int]] = field(default_factory=dict)
    error: EngineError | None = None
    read_by_qemu: list[int] = field(default_factory=list)

    def _answer(self) -> None:
        if self.error:
            raise self.error

    async def registers(self) -> list[Registers]:
        self._answer()
        return self.cpus

    async def vcpus(self) -> list[Vcpu]:
        return [Vcpu(one.cpu, os.getpid(), f"/cpu{one.cpu}", {"core-id": one.cpu}) for one in self.cpus]

    async def physical_bits(self, vcpu: Vcpu) -> int:
        return 40

    async def gigabyte_pages(self, vcpu: Vcpu) -> bool:
        return True

    async def address_space(self, *, smm_of: int | None = None) -> AddressSpace:
        self._answer()
        assert self.ram is not None
        own = Region(0, self.ram.size, "ram", "ram0", 0, self.ram.host)
        return AddressSpace([own, *self.more], {"ram0": self.ram.size})

    async def read_physical(self, address: int, size: int) -> bytes:
        assert self.ram is not None
        self.read_by_qemu.append(address)
        return self.ram.map[address : address + size]

    async def disassemble(self, cpu: int, address: int, count: int) -> list[str]:
        return [f"{address:#x}: f4 hlt"]

    async def balloon_bytes(self) -> int | None:
        return self.balloon

    async def kvm_counters(self) -> dict[str, dict[str, int]]:
        return dict(self.counters)

    async def block_nodes(self) -> dict[str, BlockNode]:
        self._answer()
        return dict(self.nodes)

    async def block_devices(self) -> list[BlockDevice]:
        return list(self.devices)

    async def nics(self) -> list[Nic]:
        self._answer()
        return list(self.cards)
