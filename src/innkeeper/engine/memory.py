"""What of a launch plan is memory: the pieces RAM consists of, which of the guest's NUMA nodes each is, and
the memory files behind them while a VM runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

MAIN_RAM = "ram0"
NumaPolicy = Literal["", "bind", "preferred", "interleave"]


@dataclass(frozen=True)
class RamPlan:
    """One piece of guest RAM, a memory file of its own. `host_nodes` are where its pages are to lie, by
    `policy` (set_mempolicy(2)); empty: wherever."""

    id: str
    size_bytes: int
    host_nodes: tuple[int, ...] = ()
    policy: NumaPolicy = ""


@dataclass(frozen=True)
class GuestNodePlan:
    """A NUMA node of the guest."""

    ram: str
    cpus: tuple[int, ...]
    distances: tuple[int, ...] = ()
    host_cpus: tuple[int, ...] = ()  # its vCPUs are held to these; empty: to none


@dataclass(frozen=True)
class DimmPlan:
    """A memory module that was plugged in, by its slot. `address`: where the guest has it; None: wherever
    there is room. `node` is the guest's; -1: it has none."""

    slot: int
    size_bytes: int
    address: int | None = None
    node: int = -1

    @property
    def id(self) -> str:
        return f"dimm{self.slot}"

    @property
    def ram(self) -> str:
        return f"ram-{self.id}"


@dataclass(frozen=True)
class MemoryPlan:
    """All that is not the plain default. `ram` empty: one piece, of the plan's `memory_bytes`."""

    ram: tuple[RamPlan, ...] = ()
    nodes: tuple[GuestNodePlan, ...] = ()
    slots: int = 0  # for so many modules, each of `step_bytes`, there is room
    step_bytes: int = 0
    dimms: tuple[DimmPlan, ...] = ()
    host_cpus: tuple[int, ...] = ()  # QEMU as a whole is held to these; empty: to none
    page_bytes: int = 0  # of huge pages; 0: ordinary ones
    prealloc: bool = False
    locked: bool = False
    thp: Literal["auto", "always", "never"] = "auto"
    merge: bool = True  # the kernel may merge its pages with equal ones


PLAIN_MEMORY: Final = MemoryPlan()


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """What the guest's balloon driver last said of its memory (virtio 1.2, 5.5.6.4). Bytes; swap and faults
    are counted since the guest's boot; None: this driver does not tell."""

    told_at: float  # seconds since the epoch, to the second
    available: int | None = None  # what it could use without swapping
    free: int | None = None
    total: int | None = None
    swapped_in: int | None = None
    major_faults: int | None = None


@dataclass(frozen=True, slots=True)
class Balloon:
    """A VM's balloon as it is now. `left_bytes` is what it leaves the guest of its RAM; `guest` is None as
    long as no driver in the guest has told anything."""

    left_bytes: int
    guest: GuestMemory | None = None


@dataclass(frozen=True)
class Ram:
    """The memory files of a VM by the name of the piece, each a descriptor of ours until `close`."""

    parts: Mapping[str, int] = field(default_factory=dict)

    def dup(self) -> Ram:
        return Ram({name: os.dup(fd) for name, fd in self.parts.items()})

    def close(self) -> None:
        for fd in self.parts.values():
            os.close(fd)

    def without(self, names: Collection[str]) -> Ram:
        """The rest; these are closed."""
        for name in names:
            os.close(self.parts[name])
        return Ram({name: fd for name, fd in self.parts.items() if name not in names})

    @property
    def size_bytes(self) -> int:
        return sum(os.fstat(fd).st_size for fd in self.parts.values())

    @property
    def used_bytes(self) -> int:
        """What the files have taken of the host."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in self.parts.values())
