"""What `inn inspect` tells, as data with stable names. Addresses and table entries are hexadecimal text:
many of them do not fit the numbers of JSON (2**53). Sizes are bytes."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from innkeeper.spec.base import Model


class CpuSummary(Model):
    """The registers that decide how one vCPU sees memory."""

    cpu: int
    mode: str = Field(description="real, virtual-8086, protected-16, protected-32, compatibility or long.")
    ring: int = Field(description="0 is the kernel, 3 user programs.")
    halted: bool = Field(description="In `hlt`, waiting for an interrupt.")
    smm: bool = Field(description="In system management mode, in the firmware.")
    paging: str = Field(description="off, 32-bit, pae, 4-level or 5-level.")
    rip: str = Field(description="The instruction pointer as a linear address.")
    rsp: str
    cr0: str
    cr2: str = Field(description="The address of the last page fault.")
    cr3: str = Field(description="Where the page tables begin.")
    cr4: str
    efer: str


class HostPlace(Model):
    """What the host has behind one guest-physical address."""

    address: str = Field(description="In QEMU's own address space (host-virtual).")
    state: str = Field(description="own, huge, shared, private, ksm, swapped or untouched.")
    mapped: bool = Field(description="In QEMU's page tables now.")
    swapped: bool
    file: bool = Field(description="A page of the memory file rather than one of QEMU's own.")
    exclusive: bool = Field(description="No other process maps it.")
    soft_dirty: bool
    physical: str | None = Field(description="Host-physical; null when there is no page or it is hidden.")
    hidden: str = Field(default="", description="Why `physical` is null though there is a page.")
    page_bytes: int
    huge: str = Field(description="no, transparent, hugetlb or unknown.")
    node: int | None = Field(description="NUMA node; null when there is no page or it is not told.")


class Slot(Model):
    """A range of guest-physical addresses with memory behind it."""

    name: str = Field(description="The block of memory it is of: ram0, or firmware and video memory.")
    kind: str = Field(description="ram or rom.")
    first: str
    last: str
    bytes: int
    offset: int = Field(description="Where in its block it begins.")
    host_address: str
    guest_ram: bool = Field(description="The VM's memory; false: firmware and video memory.")
    nodes: dict[str, int] | None = Field(
        default=None, description="Bytes by NUMA node, of the pages that are mapped; only where asked for."
    )


class WalkStep(Model):
    level: str
    index: int
    entry_address: str = Field(description="Guest-physical.")
    entry: str
    flags: list[str] = Field(description="P RW US PWT PCD A D G PS PAT XD, as in Intel's manual.")
    points_to: str = Field(description="Guest-physical: the next table, or the page.")
    page_bytes: int = Field(description="Of the page it maps; 0: it leads to a table.")
    host: HostPlace | None = Field(description="Behind the entry itself.")


class PageView(Model):
    """A translation of the guest's tables: rights are those of all levels together."""

    base: str
    bytes: int
    writable: bool
    user: bool
    executable: bool
    is_global: bool
    accessed: bool
    dirty: bool


class WalkView(Model):
    paging: str
    root: str
    steps: list[WalkStep]
    end: str = Field(description="mapped, not-present, reserved-bits, not-canonical or unreadable.")
    level: str = Field(description="At which it ended; empty when mapped.")
    detail: str
    page: PageView | None


class EntryView(Model):
    """An entry that maps a page for the processor."""

    source: str = Field(description="Of what it translates: guest-virtual, or guest-physical for EPT/NPT.")
    target: str | None = Field(description="Host-physical.")
    bytes: int
    present: bool
    writable: bool
    user: bool
    executable: bool
    why: list[str] = Field(description="Why it may do less than the guest's tables say.")


class Composed(Model):
    """The whole way in one step, in the two forms that hardware knows."""

    shadow: EntryView | None = Field(description="Guest-virtual to host-physical; null for a physical one.")
    nested: EntryView | None = Field(description="Guest-physical to host-physical: EPT or NPT.")
    shadow_references: int | None = Field(description="Memory references of a walk without any cache.")
    nested_references: int | None
    used: str = Field(description="What this VM really uses: ept, npt, shadow, softmmu or unknown.")
    note: str


class AddressReport(Model):
    """One address, all the way: guest-virtual, guest-physical, host-virtual, host-physical."""

    name: str
    asked: str
    cpu: CpuSummary
    virtual: str | None = Field(description="Null when a physical address was asked for.")
    physical: str | None = Field(description="Guest-physical; null when it is not mapped.")
    walk: WalkView | None
    slot: Slot | None
    device: str = Field(description="What answers at that address when it is no memory.")
    host: HostPlace | None
    composed: Composed | None
    content: str = Field(default="", description="Up to 16 bytes from there on, in hexadecimal.")
    took_ms: float


class MemoryTotals(Model):
    """Bytes of guest memory in each state. `present` is what is in host memory: own, huge, shared, private
    and ksm."""

    bytes: int
    present: int
    own: int
    huge: int
    shared: int = Field(description="Of the memory that forks have in common, not copied.")
    private: int = Field(description="Copied from there, since it was written.")
    ksm: int
    swapped: int
    untouched: int
    ballooned: int | None = Field(description="Given back by the guest; null without a balloon.")


class PageRun(Model):
    first: str = Field(description="Guest-physical.")
    bytes: int
    state: str


class Picture(Model):
    first: str
    cells: str = Field(description="One letter for each `cell_bytes`; a capital: at least half is touched.")


class MemoryMap(Model):
    name: str
    cpus: list[CpuSummary]
    slots: list[Slot]
    totals: MemoryTotals
    shared_with: list[str] = Field(description="Other VMs here that have the same common memory.")
    nodes: dict[str, int] | None = Field(default=None, description="Bytes by NUMA node, where asked for.")
    nodes_note: str = ""
    cell_bytes: int
    pictures: list[Picture]
    runs: list[PageRun]
    took_ms: float


class CpuThread(Model):
    """The thread of a vCPU, as the host's scheduler sees it; seconds since it began."""

    id: int
    name: str
    state: str
    user_s: float
    system_s: float
    waited_s: float = Field(description="Ready to run while all CPUs were taken: steal.")
    ran_on: int = Field(description="The host's CPU it ran on last.")
    slices: int


class CpuReport(Model):
    summary: CpuSummary
    topology: dict[str, int]
    thread: CpuThread | None
    flags: dict[str, list[str]] = Field(description="Names of the bits set in cr0, cr4 and efer.")
    registers: dict[str, str]
    executing: list[str] = Field(description="The next instructions.")
    exits: dict[str, int] | None = Field(description="KVM's counters; null without KVM.")


class CpuInspection(Model):
    name: str
    accelerator: str
    paused: bool
    cpus: list[CpuReport]
    note: str
    took_ms: float


class ImageLayer(Model):
    path: str
    format: str
    node: str
    virtual_bytes: int
    allocated_bytes: int = Field(description="What it takes on the host's disk.")
    writable: bool
    used_by: list[str] = Field(description="Other VMs and snapshots (VM/SNAPSHOT) whose disks contain it.")
    bitmaps: list[dict[str, Any]]


class IoCounters(Model):
    requests: int
    bytes: int
    merged: int
    failed: int
    invalid: int
    average_us: float | None = Field(description="Of one request; null when there were none.")


class DiskReport(Model):
    name: str
    node: str
    bus: str
    state: str = Field(description="ok, failed or nospace, where the device can tell.")
    virtual_bytes: int
    allocated_bytes: int = Field(description="Of all layers together.")
    layers: list[ImageLayer] = Field(description="Top first.")
    cache: str = Field(description="writeback, none, writethrough, directsync or unsafe, as QEMU names them.")
    aio: str
    discard: str
    detect_zeroes: str
    throttle: dict[str, int] = Field(description="Limits in force, by the names of the spec; bytes, seconds.")
    throttle_shared: bool = Field(description="These are of all disks that have no limits of their own.")
    held_back_by: list[str] = Field(description="The limits that requests wait for now.")
    in_flight: int | None = Field(description="Requests taken from the guest and not answered.")
    reads: IoCounters
    writes: IoCounters
    flushes: IoCounters
    discards: IoCounters


class DiskInspection(Model):
    name: str
    disks: list[DiskReport]
    took_ms: float


class GuestSide(Model):
    """What the guest says of its interface (it may lie)."""

    interface: str
    state: str = Field(description="up, down, ... of the interface in the guest; empty when not told.")
    addresses: list[str]
    counters: dict[str, int] = Field(description="rx_bytes, tx_packets, rx_errors, ...")


class NicReport(Model):
    name: str
    model: str
    mac: str
    backend: str
    backend_pid: int | None
    backend_alive: bool | None
    connected: bool | None = Field(description="Whether QEMU has its connection to the back-end.")
    waiting_bytes: int | None = Field(description="Sent to the guest and not taken yet.")
    host_access: bool
    forwards: list[dict[str, Any]]
    promiscuous: bool | None
    multicast: list[str]
    guest: GuestSide | None


class NetInspection(Model):
    name: str
    nics: list[NicReport]
    note: str = Field(description="Why there is no view of the guest, where there is none.")
    took_ms: float
