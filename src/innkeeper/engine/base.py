"""The seam between the agent and whatever runs virtual machines.

A `LaunchPlan` is everything an engine needs to know to start one VM, as plain values and resolved
files; `Engine` turns it into a running `Machine` or finds one again that outlived its daemon. QEMU
implements this; `engine/fake.py` is the fake that can fail.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from innkeeper.drivers.run import Owner
from innkeeper.engine.inspection import Inspection
from innkeeper.engine.memory import MAIN_RAM, PLAIN_MEMORY, Balloon, DimmPlan, MemoryPlan, Ram, RamPlan
from innkeeper.engine.throttle import Throttle
from innkeeper.paths import RuntimeFiles

DiskFormat = Literal["raw", "qcow2"]


@dataclass(frozen=True)
class Layer:
    """One file of a disk's chain; only the top layer of a writable disk is written."""

    path: Path
    format: DiskFormat


@dataclass(frozen=True)
class DiskPlan:
    name: str
    chain: tuple[Layer, ...]  # top first, base last
    bus: Literal["virtio", "scsi", "sata", "ide"] = "virtio"
    media: Literal["disk", "cdrom"] = "disk"
    readonly: bool = False
    boot_index: int | None = None


@dataclass(frozen=True)
class NicPlan:
    model: str
    mac: str
    backend: Literal["passt", "slirp"]
    forwards: tuple[tuple[str, str, int, int], ...] = ()  # (protocol, host address, host port, guest port)
    boot_index: int | None = None
    built_mac: str = ""  # what the hardware was built with, where its state has that: of a fork, its parent's
    host_access: bool = False  # the gateway's address leads to the host's loopback


@dataclass(frozen=True)
class KernelPlan:
    kernel: Path
    initrd: Path | None
    append: str


@dataclass(frozen=True)
class FirmwarePlan:
    """UEFI: the shared read-only code and this VM's own variables."""

    code: Path
    variables: Path


@dataclass(frozen=True)
class LaunchPlan:
    """One VM, fully decided. `epoch` counts the starts of the instance."""

    uid: str
    name: str
    epoch: int
    binary: str
    machine: str  # versioned, e.g. pc-q35-7.2
    accelerator: Literal["kvm", "tcg"]
    cpu_model: str
    cpus: int  # present, or of one that runs: when last looked at (agent/devices.py)
    memory_bytes: int
    memory: MemoryPlan = PLAIN_MEMORY
    disks: tuple[DiskPlan, ...] = ()
    nics: tuple[NicPlan, ...] = ()
    kernel: KernelPlan | None = None
    firmware: FirmwarePlan | None = None
    architecture: str = "x86_64"
    cpus_built: int = 0  # those it was first started with, by which its devices were built; 0: `cpus`
    parked: int = 0  # of those present: not used by the guest, since they cannot be unplugged without harm
    cpus_max: int = 0  # with those that may be plugged in; 0: none may
    topology: tuple[int, int, int] | None = None  # sockets, cores, threads; their product is cpus_max
    iommu: Literal["none", "intel"] = "none"
    translated_bytes: int = 0  # what QEMU may keep of what it translated (TCG); 0: as it sees fit
    reporting: bool = False  # its guest gives back what it frees, unasked
    balloon: bool = False  # not of those whose hardware was put together before there was one
    vga: Literal["none", "std", "virtio"] = "std"
    vnc: str = ""  # "", "socket" or ADDRESS:PORT
    paused: bool = False
    incoming: bool = False  # starts from the state of another VM instead of from its firmware
    ram_private: bool = False  # RAM is a private, copy-on-write view of a frozen VM's
    # Of a fork that has not learned who it is: MAC addresses its guest may still have, those of its NICs in
    # order, generation by generation.
    inherited_macs: tuple[str, ...] | None = None
    console_log: Path = Path("console.log")
    qemu_log: Path = Path("qemu.log")

    @property
    def backends(self) -> tuple[RamPlan, ...]:
        """Every piece of its RAM that is there from the start."""
        return self.memory.ram or (RamPlan(MAIN_RAM, self.memory_bytes),)

    def piece_of(self, dimm: DimmPlan) -> RamPlan:
        """A module's own RAM, on the host's nodes where that of its node lies."""
        beside = self.backends[max(dimm.node, 0)] if dimm.node < len(self.backends) else self.backends[0]
        return RamPlan(dimm.ram, dimm.size_bytes, beside.host_nodes, beside.policy)

    @property
    def pieces(self) -> tuple[RamPlan, ...]:
        """Every piece of its RAM, modules and all."""
        return (*self.backends, *(self.piece_of(dimm) for dimm in self.memory.dimms))

    @property
    def ram_bytes(self) -> int:
        return sum(piece.size_bytes for piece in self.pieces)


@dataclass(frozen=True)
class Moment:
    """A VM frozen in time, from which copies can be started: its RAM, which nobody writes any more, and
    its device state. Disks are the caller's: a copy must get layers over those of that moment."""

    ram: Ram  # the holder closes it
    state: Path


class RunState(enum.Enum):
    RUNNING = "running"
    PAUSED = "paused"
    INCOMING = "incoming"  # waits for the state of another VM; has never run
    IO_ERROR = "io-error"  # QEMU stopped the vCPUs: a disk on the host failed or is full
    PANICKED = "panicked"
    SHUT_DOWN = "shut-down"


class EventKind(enum.Enum):
    AGENT_OPENED = "agent-opened"  # something in the guest opened the agent's port
    AGENT_CLOSED = "agent-closed"
    PANICKED = "panicked"
    RESET = "reset"
    SHUTDOWN = "shutdown"  # QEMU is about to exit; detail = who asked (QAPI ShutdownCause)
    STATE = "state"  # vCPUs stopped or resumed
    IO_ERROR = "io-error"
    BALLOON = "balloon"  # the guest gave memory to its balloon, or took some back
    DEVICES = "devices"  # the guest gave up a device, perhaps long after it was asked to
    ENDED = "ended"  # the process is gone; always the last one


@dataclass(frozen=True)
class MachineEvent:
    kind: EventKind
    detail: str = ""


@dataclass(frozen=True)
class Exit:
    """How the process ended; `status` is None when it was not our child (adopted)."""

    status: int | None
    shutdown_cause: str = ""


@dataclass(frozen=True)
class VcpuSlot:
    """A place for a vCPU, by its number in the guest."""

    index: int
    present: bool


@dataclass(frozen=True, slots=True)
class ThreadIds:
    """Which threads of a VM's process do what; by the host's thread ids."""

    vcpus: tuple[int, ...]  # in the order of the vCPUs
    iothreads: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DiskCounters:
    """What the guest did with one disk since its process began."""

    name: str
    read_bytes: int
    write_bytes: int
    read_ops: int
    write_ops: int
    flush_ops: int
    read_ns: int = 0  # how long requests took, all together: those at the same time count each
    write_ns: int = 0
    flush_ns: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """What only the process itself can tell. `kvm`: its counters over all vCPUs, None without KVM."""

    disks: tuple[DiskCounters, ...]
    kvm: Mapping[str, int] | None = None
    balloon_bytes: int | None = None  # what the guest has with its balloon as it is; None: no balloon


class Machine(Protocol):
    """One running VM. Every call has a deadline inside; EngineError when it is not met."""

    @property
    def pid(self) -> int: ...
    @property
    def pids(self) -> tuple[int, ...]:
        """That process, and those that it has beside it."""

    @property
    def epoch(self) -> int: ...
    @property
    def accelerator(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def started_at(self) -> float: ...
    @property
    def agent_open(self) -> bool:
        """Whether the guest has the agent's port open."""

    @property
    def times_ms(self) -> Mapping[str, float]:
        """How long each step of the launch took."""

    async def run_state(self) -> RunState: ...
    async def inspection(self) -> Inspection:
        """To look into it while it runs."""

    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def power_button(self) -> None:
        """Press the ACPI power button; the guest may or may not react."""

    async def kill(self) -> None:
        """End the process; returns when it is gone."""

    async def vcpus(self) -> list[VcpuSlot]:
        """Every place, by number; places that can only be filled at the start are all filled."""

    async def plug_vcpu(self, index: int) -> None:
        """Fill an empty place. The guest notices, and brings the vCPU online or not."""

    async def unplug_vcpu(self, index: int) -> None:
        """Ask the guest to give up a vCPU; `vcpus` tells when it has. May be asked again. Raises EngineError
        for the first one, and for a guest that surely takes no such requests."""

    @property
    def unplug_spoils(self) -> bool:
        """Unplugging a vCPU would leave a process that dies sooner or later: never do it."""

    async def dimms(self) -> list[DimmPlan]:
        """The memory modules it has, by slot, beside what it was started with."""

    async def plug_dimm(self, dimm: DimmPlan, plan: LaunchPlan) -> None:
        """Give it one; `plan` is its own. The guest notices, and brings the memory online or not. Raises
        NoCapacity when the host has none."""

    async def unplug_dimm(self, dimm: DimmPlan) -> None:
        """Ask the guest to give it up; `dimms` tells when it has. May be asked again."""

    async def keeps_dimm(self, dimm: DimmPlan) -> bool:
        """Whether the guest has said that it does not."""

    async def throttles(self) -> dict[str, Throttle | None]:
        """What each of its disks is held to now, by the disk's name."""

    async def throttle(self, disk: str, limits: Throttle | None) -> None:
        """Hold it to that from now on; None: to nothing. Requests that wait at this disk go on by the new
        limits. A group has one set of limits: those set last. Raises EngineError for a disk it lacks."""

    async def balloon(self, *, every_s: int) -> Balloon:
        """How its balloon is; the guest is to tell of its memory every so many seconds. Its deadline is
        short; raises EngineError also where there is no balloon."""

    async def set_balloon(self, left_bytes: int) -> None:
        """Ask the guest to make do with so much of its RAM. It does so by and by, or not at all."""

    async def hold_balloon(self) -> None:
        """Ask the guest to leave its balloon as it is, however far it got."""

    def ram_backing(self) -> dict[tuple[int, int], int]:
        """What each of its memory files has taken of the host, in bytes, by device and inode."""

    @property
    def reclaimable(self) -> bool:
        """What its balloon takes goes back to the host. Not of a VM that shares its RAM with others."""

    @property
    def ram_private(self) -> bool:
        """Its RAM is a private view of another's moment: it must get RAM of its own (`receive`) before it
        can be forked."""

    @property
    def ram_used_bytes(self) -> int:
        """At most so much of its RAM has something in it."""

    def share_ram(self) -> Ram:
        """New descriptors of its RAM, for a Moment; the caller's to close."""

    async def freeze(self, state: Path) -> None:
        """Halt the VM and write its device state. Its network connections are held, its disks inactive;
        `thaw` undoes all that, also when this raises. Only while nobody uses its RAM as that of a moment
        may it be thawed; else another machine goes on in its place."""

    async def thaw(self, *, paused: bool) -> None:
        """It goes on after all, unless it is to stay `paused`. A stand-in for it must be gone: both would
        read from its network connections."""

    async def restore(self, moment: Moment, *, paused: bool) -> None:
        """Of one that was launched for it (plan.incoming): become the VM as it was at the moment, and run
        unless `paused`."""

    async def receive(self, old: Machine) -> None:
        """Of a stand-in with RAM of its own: become the running VM `old`, which is halted when this returns
        (where it can be moved live, not before the last of its RAM is). Nothing runs then: `resume` this
        one, with `old` retired, or `thaw` the other, as also when this raises. Both at once would tear the
        disks apart."""

    def retire(self) -> None:
        """End it without waiting: a stand-in is the VM now, and there is no way back."""

    def renamed(self, files: RuntimeFiles) -> None:
        """Its runtime directory has another name now."""

    async def succeed(self, old: Machine) -> None:
        """Of a stand-in that is the VM now: wait for the end of `old`, and have its connections."""

    async def screenshot(self) -> bytes:
        """The first display as a PNG; Unsupported when the VM has none."""

    async def thread_ids(self) -> ThreadIds: ...
    async def counters(self) -> Counters:
        """Made for being asked often: its deadline is short."""

    def events(self) -> AsyncIterator[MachineEvent]:
        """One consumer; bounded; ends after ENDED."""

    async def wait_exit(self) -> Exit: ...
    async def detach(self) -> None:
        """Let go of it: the VM runs on."""


@dataclass(frozen=True)
class Features:
    """What this engine on this host can do."""

    version: str
    machines: Mapping[str, str] = field(default_factory=dict)  # alias or name -> versioned name


class Engine(Protocol):
    async def launch(
        self, plan: LaunchPlan, files: RuntimeFiles, owner: Owner | None, moment: Moment | None = None
    ) -> Machine:
        """Start it and return once its monitor answers. With a `moment` (and a plan for it: incoming,
        ram_private) it sees that RAM and waits to be restored. On failure nothing is left running and
        StartFailed says why."""

    async def stand_in(
        self, old: Machine, plan: LaunchPlan, files: RuntimeFiles, owner: Owner | None
    ) -> Machine:
        """A second process for the running VM `old`, waiting to take its place: at its next moment on a
        private view of its RAM, or by `receive` in RAM of its own, as the plan says. The VM's network
        stands still from here on; to give up, kill this one, then `thaw` `old`."""

    def find_running(self) -> dict[str, list[int]]:
        """uid -> pids of all VMs of this engine on this host, whoever started them. The oldest first: a
        hand-over that was cut leaves two of one VM."""

    def listens(self, files: RuntimeFiles) -> bool:
        """Whether a process is behind these files; they may be those of one that is gone."""

    async def adopt(
        self, uid: str, pid: int, files: RuntimeFiles, stand_in: tuple[int, RuntimeFiles] | None = None
    ) -> Machine:
        """Take over a VM that an earlier daemon left running. One that does not answer is taken
        over as well: it can be killed, and `run_state` tries again. With the `stand_in` of a hand-over
        that was cut, the one that is the VM is returned, and the other ended."""

    async def destroy_stray(self, pid: int) -> None:
        """End a VM that nobody wants, without a Machine for it."""

    def command_line(self, plan: LaunchPlan, files: RuntimeFiles) -> list[str]:
        """The same VM as a command a person can paste: files by path instead of by descriptor."""
