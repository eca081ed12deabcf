"""What every operation of the agent works with."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from innkeeper.agent.moments import Moments
from innkeeper.agent.spares import Spares
from innkeeper.agent.tune.balloon import View
from innkeeper.clock import Clock
from innkeeper.drivers.cgroup import Cgroups
from innkeeper.drivers.run import Owner, Runner
from innkeeper.engine.base import Engine, LaunchPlan, Machine
from innkeeper.errors import StoreError
from innkeeper.guest.agent import GuestAgent
from innkeeper.paths import Paths, RuntimeFiles
from innkeeper.spec.host import HostNode, KvmVerdict
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, InstanceStatus
from innkeeper.spec.overcommit import HostSettings
from innkeeper.store.repo import Repo

# Every point at which the fault suite kills the daemon; `checkpoint` refuses any other name.
CHECKPOINTS: Final = (
    "create.begun", "create.directory", "create.disk", "create.done",
    "start.begun", "start.launched", "start.published",
    "stop.begun", "stop.asked", "stop.ended",
    "kill.begun", "kill.ended",
    "pause.done", "resume.done",
    "template.begun", "template.waiting", "template.frozen", "template.written", "template.done", "wake.done",
    "spare.begun", "spare.made", "spare.ready",
    "change.begun", "change.plugged", "change.parked", "change.emptied", "change.unplugged",
    "change.fitted", "change.done",
    "promote.waiting", "promote.moved", "promote.done",
    "fork.begun", "fork.layers", "fork.waiting", "fork.frozen", "fork.chained", "fork.restored",
    "fork.taken_over", "fork.renamed", "fork.done", "copy.begun", "copy.made", "copy.started",
    "snapshot.begun", "snapshot.frozen", "snapshot.small", "snapshot.written", "snapshot.commit",
    "snapshot.done", "unsnapshot.begun", "unsnapshot.files", "unsnapshot.done",
    "revert.begun", "revert.loaded", "revert.switched", "revert.started", "revert.done",
    "discard.begun", "discard.done", "forget.begun", "forget.done",
)  # fmt: skip

# Uids above every range in use by convention (systemd's UIDS-GIDS page lists 0x70000000-0x7FFFFFFF as
# unused): each VM is a user of its own, without an entry in any user database.
VM_UID_BASE: Final = 0x7000_0000
VM_UID_COUNT: Final = 0x0FFF_0000

LAUNCHES_AT_ONCE: Final = (os.cpu_count() or 1) + 1


@dataclass(frozen=True)
class QemuView:
    """What a launch must know of this host's QEMU and KVM."""

    binary: str
    version: str
    machine_aliases: dict[str, str]
    kvm: KvmVerdict
    kvm_detail: str


class HostView(Protocol):
    """What the operations ask of the host; read anew where it changes."""

    name: str
    boot_id: str
    settings: HostSettings

    def qemu(self, architecture: str = "x86_64") -> QemuView:
        """For guests of that architecture. Raises Unsupported when no such QEMU is installed."""

    def memory_available_bytes(self) -> int: ...
    def hugepages_free(self, page_bytes: int) -> int:
        """Huge pages of this size that nobody has, nor was promised."""

    def numa(self) -> tuple[HostNode, ...]:
        """Its NUMA nodes, with what is free on them."""


@dataclass
class Running:
    """A VM that runs, and what the agent keeps of it while it does."""

    machine: Machine
    uid: str
    agent: GuestAgent
    plan: LaunchPlan | None = None  # of the process that runs; None if an older daemon did not note it
    console_offset: int = 0  # where this run begins in the console log
    woke_at: float = 0.0  # of a copy: when its vCPUs ran on
    forked: bool = False  # it is a parent, and likely to be forked again
    # Not set while it is handed over: how its process seems then is not how the VM is, nor is its end.
    at_rest: asyncio.Event = field(default_factory=lambda: _set(asyncio.Event()))
    woken: bool = False  # from a moment: its clock is of then until its agent has been told
    fitted: tuple[Machine, InstanceSpec] | None = None  # this process has all that this spec says
    balloon: View | None = None  # as the balloon controller saw it last
    balloon_asked: bool = False  # its balloon may be on its way somewhere
    limit_waits: tuple[int, float] | None = None  # a memory limit its balloon is to reach, and since when
    balloon_runs: int = 0  # raised by what makes the controller look at it as if it were new
    asked_to_end: str = ""  # how it is going to end, when a verb ends it
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # set once its end has been noted


def _set(event: asyncio.Event) -> asyncio.Event:
    event.set()
    return event


async def _nobody_listens(uid: str, files: RuntimeFiles) -> None:
    pass


async def _nobody_watches(record: InstanceRecord, running: Running, machine: Machine) -> None:
    running.machine = machine


@dataclass
class Context:
    paths: Paths
    runner: Runner
    engine: Engine
    repo: Repo
    clock: Clock
    host: HostView
    running: dict[str, Running] = field(default_factory=dict)  # by uid: names are used again
    statuses: dict[str, InstanceStatus] = field(default_factory=dict)  # by uid
    records: dict[str, InstanceRecord] = field(default_factory=dict)  # what is wanted, by name
    moments: Moments = field(default_factory=Moments)
    spares: Spares = field(default_factory=Spares)
    cgroups: Cgroups = field(default_factory=Cgroups)
    busy: Callable[[str], bool] = lambda name: False  # something is being done to it, or about to be; by name
    on_launched: Callable[[InstanceRecord, Running], None] = lambda record, running: None
    on_stand_in: Callable[[str, RuntimeFiles], Awaitable[None]] = _nobody_listens  # it may become the VM
    on_replaced: Callable[[InstanceRecord, Running, Machine], Awaitable[None]] = _nobody_watches
    # More QEMUs starting at once than this only slow each other down.
    launch_slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LAUNCHES_AT_ONCE))
    snapshot_locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    unsaved: set[str] = field(default_factory=set)  # uids whose status the store could not take
    launching: set[str] = field(default_factory=set)  # uids whose QEMU is about to run
    cpu_cores: float = math.inf  # what VMs have together now, beside what else runs on the host
    cpu_factors: dict[str, float] = field(default_factory=dict)  # of the weights of those who are owed some
    cpu_entitled: dict[str, float] = field(default_factory=dict)  # by uid, in cores, when all are busy
    qos_turn: asyncio.Lock = field(
        default_factory=asyncio.Lock
    )  # held while groups of running VMs are written
    qos_changed: asyncio.Event = field(default_factory=asyncio.Event)  # look again who is to have what
    balloon_news: asyncio.Event = field(default_factory=asyncio.Event)  # worth a look before it is due
    freed: asyncio.Event = field(default_factory=asyncio.Event)  # a VM ended: memory is free again
    checkpoint: Callable[[str], None] = lambda name: None

    def owner(self, uid: str) -> Owner | None:
        """Whom a VM's processes run as: as root a user of its own, else ourselves."""
        if os.geteuid() != 0:
            return None
        number = VM_UID_BASE + int.from_bytes(hashlib.sha256(uid.encode()).digest()[:4]) % VM_UID_COUNT
        return Owner(number, number, _kvm_group())

    def snapshot_lock(self, ident: str) -> asyncio.Lock:
        """Held while a VM is made from the snapshot, or the snapshot removed."""
        return self.snapshot_locks.setdefault(ident, asyncio.Lock())

    async def publish(
        self, record: InstanceRecord, *, durable: bool = False, **changes: Any
    ) -> InstanceStatus:
        """Change what is known of an instance and write it to the store. Raises StoreError when that cannot
        be done, as on a full disk; it is known here then, and written by the next publish."""
        latest = self.records.get(record.name)
        if latest is None or latest.uid != record.uid:
            return InstanceStatus()  # removed meanwhile; the name may already be another's
        before = self.statuses.get(record.uid, InstanceStatus())
        after = before.model_copy(update={**changes, "boot_id": self.host.boot_id})
        if after != before or record.uid in self.unsaved:
            self.statuses[record.uid] = after
            try:
                await self.repo.put_status(record.name, record.uid, after, durable=durable)
            except StoreError:
                self.unsaved.add(record.uid)
                raise
            if self.statuses.get(record.uid) is after:
                self.unsaved.discard(record.uid)
        return after


def _kvm_group() -> tuple[int, ...]:
    """The group that may open /dev/kvm, if it is one: QEMU as an unprivileged user needs it."""
    try:
        info = os.stat("/dev/kvm")
    except OSError:
        return ()
    return (info.st_gid,) if info.st_mode & 0o060 == 0o060 and info.st_gid != 0 else ()


def crash_at(wanted: str) -> Callable[[str], None]:
    """A checkpoint that kills this process, as a power switch would, at the one named `wanted`."""

    def checkpoint(name: str) -> None:
        assert name in CHECKPOINTS, name
        if name == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return checkpoint
