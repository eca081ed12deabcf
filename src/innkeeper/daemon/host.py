"""This host as the agent sees it: facts gathered once, memory and disk space read when asked, and the
host's own record in the store, kept under a lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from innkeeper.agent import facts as host_facts
from innkeeper.agent import sysfs
from innkeeper.agent.context import QemuView
from innkeeper.agent.qos import disk
from innkeeper.clock import Clock
from innkeeper.drivers.cgroup import Cgroups
from innkeeper.drivers.cgrouptree import how_to_get
from innkeeper.errors import InnkeeperError, NotFound, Unsupported
from innkeeper.spec.architecture import EMULATED, HOST, QEMU_PACKAGES, missing_qemu, qemu_name
from innkeeper.spec.host import ForeignQemu, HostFacts, HostNode, HostRecord, HugePages, QosSupport
from innkeeper.spec.memory import THP_OF_FILES
from innkeeper.spec.overcommit import HostSettings, KsmReport
from innkeeper.store.repo import Repo

log = logging.getLogger("innkeeper.host")

LEASE_TTL_S: Final = 30.0
REFRESH_INTERVAL_S: Final = 10.0


class LocalHost:
    """See agent.context.HostView. `facts` is set by `gather`, which may take seconds after a boot."""

    def __init__(self, paths_state: Path, root: Path = Path("/")) -> None:
        self._state = paths_state
        self._root = root
        self.name = platform.node().split(".")[0].lower() or "localhost"
        self.boot_id = sysfs.read_text(root / "proc/sys/kernel/random/boot_id")
        self.machine_id = sysfs.read_text(root / "etc/machine-id")
        self.facts: host_facts.HostFacts | None = None
        self.cgroups = Cgroups()
        self.settings = HostSettings()
        self.ksm: Callable[[], KsmReport | None] = lambda: None

    def qemu(self, architecture: str = HOST) -> QemuView:
        facts = self._known()
        binary = _binary(facts, architecture)
        if binary is None:
            what, hint = missing_qemu(architecture)
            raise Unsupported(what, hint=hint)
        return QemuView(
            binary=binary.path,
            version=binary.version,
            machine_aliases={one.name: one.alias_of for one in binary.machines if one.alias_of},
            kvm=facts.accelerator.kind if architecture == HOST else "missing",
            kvm_detail=facts.accelerator.detail if architecture == HOST else EMULATED,
        )

    def memory_available_bytes(self) -> int:
        return sysfs.meminfo(self._root).get("MemAvailable", 0)

    def hugepages_free(self, page_bytes: int) -> int:
        pools = sysfs.hugepage_pools(self._root / "sys/kernel/mm/hugepages")
        return sum(pool.free - pool.reserved for pool in pools if pool.page_bytes == page_bytes)

    def numa(self) -> tuple[HostNode, ...]:
        """The NUMA nodes with what is free on them now."""
        return tuple(_node(one) for one in sysfs.numa_nodes(self._root))

    def record(self, now: float) -> HostRecord:
        """What placement decides by, with memory and space as they are now."""
        facts = self._known()
        binary = _binary(facts, HOST)
        return HostRecord(
            name=self.name,
            machine_id=self.machine_id,
            boot_id=self.boot_id,
            observed_at=now,
            settings=self.settings,
            ksm=self.ksm(),
            facts=HostFacts(
                kernel=facts.kernel,
                cpus=len(facts.cpus),
                cpu_ids=tuple(sorted(os.sched_getaffinity(0))),
                cpu_model=facts.cpu_model,
                memory_bytes=facts.memory_bytes,
                memory_available_bytes=self.memory_available_bytes(),
                numa=self.numa(),
                disk_free_bytes=shutil.disk_usage(self._state).free,
                qemu=binary.path if binary else "",
                qemu_version=binary.version if binary else "",
                kvm=facts.accelerator.kind,
                kvm_detail=facts.accelerator.detail,
                kvm_repair=facts.accelerator.repair,
                kvm_instructions_per_s=facts.accelerator.instructions_per_s,
                paging=sysfs.guest_paging(self._root),
                thp_of_files=sysfs.chosen(sysfs.read_text(self._root / THP_OF_FILES)),
                machine_types=tuple(one.name for one in binary.machines if not one.alias_of)
                if binary
                else (),
                machine_aliases={one.name: one.alias_of for one in binary.machines if one.alias_of}
                if binary
                else {},
                foreign=_foreign(facts),
                qos=_qos(self.cgroups, self._state),
                extra=facts.to_dict(),
            ),
        )

    def _known(self) -> host_facts.HostFacts:
        if self.facts is None:
            raise Unsupported("The host has not been examined yet", hint="try again in a second")
        return self.facts


def _binary(facts: host_facts.HostFacts, architecture: str) -> host_facts.QemuBinary | None:
    return next((one for one in facts.qemu if one.path.endswith(qemu_name(architecture))), None)


def _qos(cgroups: Cgroups, disks: Path) -> QosSupport:
    cpu, memory, io = cgroups.why_not("cpu"), cgroups.why_not("memory"), cgroups.why_not("io")
    hint = how_to_get(os.geteuid() == 0) if cpu or memory or io else ""
    base = cgroups.bases.get("memory")
    return QosSupport(
        cpu=cpu,
        memory=memory,
        io=io or disk.why_not(cgroups, [disks]),
        memory_version=base.version if base else 0,
        hint=hint,
    )


def _foreign(facts: host_facts.HostFacts) -> dict[str, ForeignQemu]:
    return {
        name: ForeignQemu(
            qemu=binary.path,
            qemu_version=binary.version,
            machine_types=tuple(one.name for one in binary.machines if not one.alias_of),
            machine_aliases={one.name: one.alias_of for one in binary.machines if one.alias_of},
        )
        for name in QEMU_PACKAGES
        if name != HOST and (binary := _binary(facts, name)) is not None
    }


def _node(node: sysfs.NumaNode) -> HostNode:
    pools = tuple(
        HugePages(page_bytes=pool.page_bytes, total=pool.total, free=pool.free, reserved=pool.reserved)
        for pool in node.hugepages
    )
    return HostNode(
        id=node.id,
        cpus=node.cpus,
        memory_bytes=node.memory_bytes,
        free_bytes=node.free_bytes,
        available_bytes=node.available_bytes,
        hugepages=pools,
        distances=node.distances,
    )


@dataclass
class HeldLease:
    """The host's lease as it is now: another one after the first ran out."""

    id: int


async def write_record(host: LocalHost, repo: Repo, clock: Clock, lease: HeldLease) -> None:
    """The record as it is now, also where the lease ran out a moment ago (a suspended machine)."""
    try:
        await repo.put_host(host.record(clock.time()), lease=lease.id)
    except NotFound:
        lease.id = await repo.store.lease_grant(LEASE_TTL_S)
        await repo.put_host(host.record(clock.time()), lease=lease.id)


async def keep_record(
    host: LocalHost, repo: Repo, clock: Clock, lease: HeldLease, freed: asyncio.Event
) -> None:
    """Keep the host's lease alive and its record fresh, for ever; at once when `freed` is set, so that
    what a VM gave back can be placed again."""
    while True:
        with contextlib.suppress(TimeoutError):
            # Not wait_for: before Python 3.12 it loses a cancellation that comes with the event.
            async with asyncio.timeout(REFRESH_INTERVAL_S):
                await freed.wait()
        freed.clear()
        try:
            async with asyncio.timeout(REFRESH_INTERVAL_S):
                await repo.store.lease_keepalive(lease.id)
                await repo.put_host(host.record(clock.time()), lease=lease.id)
        except (InnkeeperError, OSError, TimeoutError) as error:
            log.warning("cannot refresh the host's record: %s", error)
            lease.id = await _new_lease(repo, lease.id)


async def _new_lease(repo: Repo, lease: int) -> int:
    """After a long sleep (suspend, a full disk) the old lease may have run out."""
    try:
        return await repo.store.lease_grant(LEASE_TTL_S)
    except InnkeeperError:
        return lease
