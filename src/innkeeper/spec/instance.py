"""An instance: what the user asked for (`InstanceSpec`), what may change on a running one
(`InstanceUpdate`), and what was observed (`InstanceStatus`)."""

from __future__ import annotations

import enum
import ipaddress
from typing import Any, Final, Literal

from pydantic import Field, ValidatorFunctionWrapHandler, field_validator, model_validator

from innkeeper.spec.architecture import DEFAULT_MACHINES, Architecture
from innkeeper.spec.base import Model, Name, Size, worded
from innkeeper.spec.cpu import Cpu, CpuUpdate, has_hotplug
from innkeeper.spec.diskqos import DiskLimits, LimitsInForce
from innkeeper.spec.memory import Memory, MemoryNow, MemoryUpdate
from innkeeper.spec.numa import GuestNuma, NodeShare
from innkeeper.spec.qos import Qos, QosUpdate
from innkeeper.units import KiB, MiB, format_cores

MAX_DISKS: Final = 24
MAX_NETWORKS: Final = 8
# Each spare is a QEMU of some 40 MB that waits.
MAX_POOL: Final = 64

Accelerator = Literal["auto", "kvm", "tcg"]
DiskBus = Literal["virtio", "scsi", "sata", "ide"]
NicModel = Literal["virtio", "e1000", "e1000e", "rtl8139"]
BootDevice = Literal["disk", "cdrom", "network"]


class Machine(Model):
    architecture: Architecture = Field(
        default="x86_64", description="Of the guest; that of its image. All but the host's own are emulated."
    )
    type: str = Field(
        default="q35",
        pattern=worded(r"^[a-z0-9.-]+$", "use q35, pc or a versioned type such as pc-q35-7.2"),
        description="`q35`, `pc`, or a versioned type such as `pc-q35-7.2`; `virt` for other architectures"
        " than x86_64; pinned to a version at creation.",
    )
    firmware: Literal["bios", "uefi"] = "bios"
    accelerator: Accelerator = "auto"
    iommu: Literal["none", "intel"] = Field(
        default="none",
        description="`intel`: a VT-d IOMMU, for a guest that gives devices to VMs of its own; needs q35.",
    )

    @model_validator(mode="before")
    @classmethod
    def _its_own_machine(cls, data: Any) -> Any:
        if isinstance(data, dict) and "type" not in data:
            own = DEFAULT_MACHINES.get(str(data.get("architecture")), "q35")
            return data | ({"type": own} if own != "q35" else {})
        return data

    @model_validator(mode="after")
    def _firmware_there_is(self) -> Machine:
        if self.architecture != "x86_64" and self.firmware == "uefi":
            raise ValueError(f"there is no UEFI firmware for {self.architecture} guests here; boot a kernel")
        return self

    @model_validator(mode="after")
    def _an_iommu_has_a_place(self) -> Machine:
        if self.iommu != "none" and "q35" not in self.type:
            raise ValueError(f"{self.type} has no place for an IOMMU; use q35")
        return self


class Boot(Model):
    """Direct kernel boot and boot order; without a kernel the firmware boots from the devices."""

    kernel: str = Field(default="", description="Path of a kernel image on the host.")
    initrd: str = Field(default="", description="Path of an initial RAM disk on the host.")
    append: str = Field(default="", description="Kernel command line (added to the image's own).")
    order: tuple[BootDevice, ...] = Field(default=("disk", "cdrom"), description="Boot order.")

    @model_validator(mode="after")
    def _kernel_first(self) -> Boot:
        if self.initrd and not self.kernel:
            raise ValueError("an initrd needs a kernel")
        if len(set(self.order)) != len(self.order):
            raise ValueError("a boot device is named twice")
        return self


class Disk(Model):
    """A disk of the instance's own (`size`: a new one; `copy_of`: a copy), or a file in place."""

    name: Name = Field(description="Also the serial number the guest sees.")
    size: Size | None = Field(default=None, description="Size of a new disk, or to grow the copy to.")
    copy_of: str = Field(default="", description="Path of a disk image, copied into the instance.")
    path: str = Field(default="", description="Path of a disk image used in place, and left on removal.")
    bus: DiskBus = "virtio"
    media: Literal["disk", "cdrom"] = "disk"
    readonly: bool = False
    qos: DiskLimits | None = Field(
        default=None, description="Limits of its own, instead of those shared with the others (`qos.disk`)."
    )

    @field_validator("qos", mode="wrap")
    @classmethod
    def _some(cls, value: Any, check: ValidatorFunctionWrapHandler) -> DiskLimits | None:
        """`inn set web disks.0.qos=` takes them all away."""
        found: DiskLimits | None = check(None if value == "" else value)
        return found if found and found.limits else None

    @model_validator(mode="after")
    def _one_origin(self) -> Disk:
        if self.path and (self.copy_of or self.size):
            raise ValueError("a disk with a path is used as it is: it takes no size and no copy_of")
        if not self.path and not self.copy_of and self.size is None and self.name != "root":
            raise ValueError("a disk needs a size, copy_of or path")
        if self.size is not None and (self.size < 64 * KiB or self.size % 512):
            raise ValueError("a disk's size is a multiple of 512 bytes, at least 64KiB")
        if self.media == "cdrom" and not self.path:
            raise ValueError("a cdrom needs a path")
        return self


class Forward(Model):
    """A port of the host that leads to a port of the guest."""

    protocol: Literal["tcp", "udp"] = "tcp"
    address: str = Field(default="127.0.0.1", description="Host address to listen on.")
    host: int = Field(ge=1, le=65535, description="Port on the host.")
    guest: int = Field(ge=1, le=65535, description="Port in the guest.")

    @field_validator("address")
    @classmethod
    def _an_address(cls, value: str) -> str:
        return str(ipaddress.ip_address(value))


class Network(Model):
    mode: Literal["user"] = Field(
        default="user", description="`user`: outbound through the host's own sockets; no set-up, no root."
    )
    model: NicModel = "virtio"
    mac: str = Field(
        default="",
        pattern=worded(
            r"^$|^[0-9a-f]{2}(:[0-9a-f]{2}){5}$", "write it in lower case, such as 52:54:00:12:34:56"
        ),
        description="Empty: derived.",
    )
    forward: tuple[Forward, ...] = ()
    host_access: bool = Field(
        default=False,
        description="Let the guest reach what listens on the host's loopback, at its gateway's address.",
    )


class Display(Model):
    vga: Literal["none", "std", "virtio"] = Field(default="std", description="Graphics adapter.")
    vnc: str = Field(
        default="",
        pattern=worded(
            r"^$|^socket$|^[0-9a-fA-F.:\[\]]+:[0-9]{1,5}$",
            "write socket, or ADDRESS:PORT such as 127.0.0.1:5900",
        ),
        description="Empty: none; `socket`: a unix socket in the runtime directory; or ADDRESS:PORT, from"
        " port 5900 on.",
    )

    @field_validator("vnc")
    @classmethod
    def _a_vnc_port(cls, value: str) -> str:
        port = value.rpartition(":")[2]
        # QEMU counts displays from port 5900 on and can listen on no other.
        if port.isdigit() and not 5900 <= int(port) <= 65535:
            raise ValueError(f"VNC ports are from 5900 to 65535, not {port}")
        return value


class InstanceSpec(Model):
    """Everything a user decides about an instance. All of it has a default but where it boots from."""

    image: str = Field(default="", description="Name of an image (`inn image list`).")
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    numa: Literal["none", "auto"] | GuestNuma = Field(
        default="none",
        description="`none`: the guest sees one node; `auto`: as many as it takes of the host; or `nodes`, "
        "each with its cpus, memory, distances and host_node.",
    )
    machine: Machine = Machine()
    boot: Boot = Boot()
    disks: tuple[Disk, ...] = Field(default=(), max_length=MAX_DISKS)
    networks: tuple[Network, ...] = Field(default=(Network(),), max_length=MAX_NETWORKS)
    display: Display = Display()
    qos: Qos = Qos()
    user_data: str = Field(default="", max_length=512 * KiB, description="cloud-init user data.")
    restart_policy: Literal["never", "on-failure", "always"] = Field(
        default="never", description="Whether to start it again when it ended without being asked to."
    )
    wait_for_agent: bool | None = Field(
        default=None, description="Whether ready means that the guest agent answers; default: as the image."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Free-form notes.")

    @model_validator(mode="after")
    def _bootable(self) -> InstanceSpec:
        names = [disk.name for disk in self.disks]
        if len(set(names)) != len(names):
            raise ValueError("two disks have the same name")
        bootable = any(disk.path or disk.copy_of for disk in self.disks)
        if not self.image and not self.boot.kernel and not bootable and "network" not in self.boot.order[:1]:
            raise ValueError("nothing to boot from: give an image, a kernel, a disk or a cdrom")
        forwards = [(f.protocol, f.address, f.host) for net in self.networks for f in net.forward]
        if len(set(forwards)) != len(forwards):
            raise ValueError("a host port is forwarded twice")
        if self.memory.max is not None and not has_hotplug(self.machine.type):
            raise ValueError(f"{self.machine.type} takes no memory while it runs: leave out memory.max")
        if isinstance(self.numa, GuestNuma):
            if self.memory.max is not None:
                raise ValueError(
                    "memory that comes later would be on none of the nodes: leave out memory.max"
                )
            self.numa.check(self.cpu.count, self.memory.size, self.cpu.reserved(hotplug=False))
        self.qos.memory.fits(dedicated=self.memory.dedicated)
        if self.machine.type.startswith("microvm") and self.machine.firmware == "uefi":
            raise ValueError("a microvm has no UEFI firmware here; use q35")
        if self.qos.cpu.reservation > self.cpu.count * 1000:
            raise ValueError(
                f"a reservation of {format_cores(self.qos.cpu.reservation)} cores is more than"
                f" {self.cpu.count} vCPU{'s' if self.cpu.count > 1 else ''} can use"
            )
        foreign = self.machine.architecture != "x86_64"
        if foreign and any(disk.bus == "ide" for disk in self.disks):
            raise ValueError(f"a {self.machine.architecture} machine has no IDE; use virtio, scsi or sata")
        return self


class InstanceUpdate(Model):
    """What `inn set` may change without stopping the instance; what it takes is in spec/livechange.py."""

    cpu: CpuUpdate | None = None
    memory: MemoryUpdate | None = None
    qos: QosUpdate | None = None
    restart_policy: Literal["never", "on-failure", "always"] | None = None
    labels: dict[str, str] | None = None


class Power(enum.StrEnum):
    OFF = "off"
    ON = "on"
    PAUSED = "paused"


class StopMode(enum.StrEnum):
    GUEST = "guest"  # ask the guest, up to a deadline
    KILL = "kill"  # at once


class Revert(Model):
    """An order to go back to a snapshot. Carried out once, whatever is killed meanwhile: the status names
    the `token` then."""

    token: str = Field(pattern=r"^[0-9a-f]{16}$")
    snapshot: str = Field(pattern=r"^[0-9a-f]{16}$", description="Its id.")
    name: Name = Field(description="Its name.")
    memory: bool = Field(description="It runs on from the saved memory.")
    start: bool = Field(description="It runs afterwards.")


class Template(Model):
    """It stands still, frozen, once it is ready: others start from that moment instead of booting."""

    pool: int = Field(default=0, ge=0, le=MAX_POOL, description="Copies spawned ahead, waiting for a name.")
    serves_image: bool = Field(
        default=False, description="`inn run` of its image starts from it, where the settings are the same."
    )


class Wanted(Model):
    """What should be, as verbs leave it. Each verb raises `generation`; the agent answers for it."""

    generation: int = 1
    power: Power = Power.OFF
    epoch: int = Field(
        default=0, description="Raised by each start and restart: a QEMU of an older epoch ends."
    )
    stop: StopMode = StopMode.GUEST
    stop_timeout_s: float = 60.0
    removed: bool = False
    remove_if_start_fails: bool = False
    remove_when_ended: bool = False
    hold: str = Field(default="", description="Removed when the client that made it with this is gone.")
    revert: Revert | None = None
    saved: bool = Field(default=False, description="Off because its state was saved to disk.")
    change: int = Field(
        default=0, description="The last generation that changed the spec of what ran, to be taken up live."
    )
    template: Template | None = None


# What a fork is reckoned to write of its RAM: a quarter. An idle one writes some 10 MiB (bench/fork);
# one that works through all of it takes as much as any VM, and the host must then have it.
FORK_MIN_PRIVATE_BYTES: Final = 32 * MiB
FORK_PRIVATE_DIVISOR: Final = 4


def private_bytes(memory_bytes: int) -> int:
    """The memory a fork is admitted with, beside its QEMU."""
    return min(memory_bytes, max(FORK_MIN_PRIVATE_BYTES, memory_bytes // FORK_PRIVATE_DIVISOR))


class ForkOrigin(Model):
    """Where a fork came from. `moment` names the one instant of the parent that it and its siblings
    share; the agent takes it when the first of them is made."""

    parent: Name
    parent_uid: str
    moment: str = Field(pattern=worded(r"^[0-9a-f]{16}$", "use 16 hexadecimal digits"))
    index: int = Field(default=0, ge=0, description="Which of the siblings this is, from 0.")
    ssh_keys: bool = Field(default=False, description="Give it SSH host keys of its own.")
    live: bool = Field(default=True, description="The parent ran: the fork begins with its RAM.")
    full: bool = Field(default=False, description="A clone: its disks are copied, it shares no layer.")
    durable: bool = Field(default=False, description="The moment is that of a snapshot, on disk.")
    template: bool = Field(default=False, description="The parent is a template: the moment lasts.")


class InstanceRecord(Model):
    """What the store keeps of an instance, durably."""

    name: Name
    uid: str
    created_at: float
    host: str = Field(description="The host the placement chose.")
    image_id: str = Field(default="", description="Content address of the image it was created from.")
    nodes: tuple[NodeShare, ...] = Field(default=(), description="Where on the host it was placed.")
    spec: InstanceSpec
    wanted: Wanted
    fork: ForkOrigin | None = None


class State(enum.StrEnum):
    """What was observed.

    pending   accepted, nothing done yet
    creating  its disks are being made
    stopped   no QEMU process
    starting  QEMU is being started
    running   vCPUs run
    paused    QEMU is there, vCPUs stand still
    stopping  the guest was asked to shut down
    hung      QEMU runs but does not answer
    removing  its files are being removed
    """

    PENDING = "pending"
    CREATING = "creating"
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    HUNG = "hung"
    REMOVING = "removing"


class Failure(Model):
    """Why the agent gave up on a generation; the same fields as an error in the API."""

    generation: int
    code: str
    message: str
    hint: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


class Ended(Model):
    """How the last run ended, and of which epoch it was."""

    epoch: int
    reason: str = Field(description="e.g. guest-shutdown, killed, out-of-memory, qemu-died, host-rebooted")
    at: float
    detail: str = ""


class InstanceStatus(Model):
    state: State = State.PENDING
    generation: int = Field(default=0, description="The last generation fully carried out.")
    failure: Failure | None = None
    created: bool = False
    epoch: int = 0
    accelerator: str = ""
    accelerator_reason: str = ""
    machine: str = Field(default="", description="Versioned machine type in use.")
    qemu: str = Field(default="", description="QEMU version in use.")
    pid: int = 0
    cpus: int = Field(default=0, description="vCPUs it has to use now; 0: it does not run.")
    cpus_max: int = Field(default=0, description="vCPUs it may get without a restart.")
    memory: MemoryNow = MemoryNow()
    disk_limits: dict[str, LimitsInForce | None] = Field(
        default_factory=dict, description="The limits that each disk is held to now, by its name."
    )
    balloon: str = Field(default="", description="Why its balloon takes nothing; empty: it may.")
    changed: int = Field(default=0, description="The last `wanted.change` that was carried out, or failed.")
    started_at: float = 0.0
    ready: bool = False
    agent: bool = False
    panicked: bool = False
    addresses: tuple[str, ...] = ()
    times_ms: dict[str, float] = Field(default_factory=dict, description="Steps of the last start.")
    ended: Ended | None = None
    restarts: int = Field(default=0, description="Starts by the restart policy since the last verb.")
    boot_id: str = Field(default="", description="Boot of the host in which this was observed.")
    note: str = Field(default="", description="What the user should know, one line.")
    progress: float | None = Field(default=None, description="How much of its disks is copied, of 1.")
    pause_ms: float = Field(default=0.0, description="How long the last fork made it stand still.")
    snapshot: str = Field(default="", description="The snapshot its disks derive from.")
    revert_begun: str = Field(default="", description="Token of the revert that has ended the run before it.")
    reverted: str = Field(default="", description="Token of the last revert carried out.")
    template: str = Field(default="", description="It is frozen as a template: the token of that moment.")
    qos: dict[str, str] = Field(
        default_factory=dict, description="What of `spec.qos` is not in force, and why: `cpu`, `memory`."
    )
    spares: int = Field(default=0, description="Of a template: copies that wait for a name.")
