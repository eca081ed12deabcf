"""What this host is and has: read once at start-up, shown by `inn host show`, used by placement.

Files are read through `sysfs`, below a `root`; programs and the kernel are asked directly. Nothing
here fails: what cannot be known is zero, empty or None. Sizes are bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from innkeeper.agent import probes, sysfs
from innkeeper.drivers.run import Runner, which
from innkeeper.engine.kvm import KvmVerdict, load_or_probe, write_json
from innkeeper.errors import InnkeeperError
from innkeeper.paths import Paths

QEMU_BINARIES: Final = ("qemu-system-x86_64", "qemu-system-aarch64", "qemu-system-riscv64")
# Asking QEMU takes 10 ms for the version and 50 ms for the machine types on an idle host.
_ASK_QEMU_DEADLINE_S: Final = 20.0
_LIVE_PROBE_DEADLINE_S: Final = 5.0


@dataclass(frozen=True)
class MachineType:
    """`alias_of` is the versioned name an unversioned one (`q35`) stands for in this QEMU."""

    name: str
    alias_of: str = ""
    default: bool = False
    deprecated: bool = False


@dataclass(frozen=True)
class QemuBinary:
    path: str
    version: str
    machines: tuple[MachineType, ...]


@dataclass(frozen=True)
class HostFacts:
    hostname: str
    machine_id: str
    boot_id: str
    kernel: str
    cpu_model: str
    cpus: tuple[int, ...]
    memory_bytes: int
    available_bytes: int
    hugepages: tuple[sysfs.HugePagePool, ...]
    thp_mode: str
    ksm_running: bool | None
    numa: tuple[sysfs.NumaNode, ...]
    cgroup_version: sysfs.CgroupVersion
    cgroups: tuple[sysfs.CgroupController, ...]
    qemu: tuple[QemuBinary, ...]
    accelerator: KvmVerdict
    tun: bool
    bridge: bool | None
    nftables: bool | None
    vhost_net: bool
    passt: bool
    swtpm: bool
    state_free_bytes: int
    root: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


async def gather(
    runner: Runner,
    paths: Paths,
    *,
    root: Path = sysfs.HOST_ROOT,
    verdict: KvmVerdict | None = None,
    find: Callable[[str], str | None] = which,
) -> HostFacts:
    """All facts of this host. What takes processes is cached: the KVM verdict, which the doctor stores
    in the same file, and QEMU's machine types. `verdict` and `find` replace the KVM probe and the search
    for programs (tests)."""

    async def accelerator() -> KvmVerdict:
        return verdict or await load_or_probe(paths.kvm_verdict, runner)

    kvm, qemu, bridge, nftables = await asyncio.gather(
        accelerator(),
        _qemu_binaries(runner, paths.qemu_machines, find),
        _live(probes.bridge_count, root),
        _live(probes.nf_tables_generation, root),
    )
    memory = sysfs.meminfo(root)
    version, controllers = sysfs.cgroups(root)
    return HostFacts(
        hostname=sysfs.read_text(root / "proc/sys/kernel/hostname"),
        machine_id=sysfs.read_text(root / "etc/machine-id"),
        boot_id=sysfs.read_text(root / "proc/sys/kernel/random/boot_id"),
        kernel=sysfs.read_text(root / "proc/sys/kernel/osrelease"),
        cpu_model=sysfs.cpu_model(root),
        cpus=sysfs.online_cpus(root),
        memory_bytes=memory.get("MemTotal", 0),
        available_bytes=memory.get("MemAvailable", 0),
        hugepages=sysfs.hugepage_pools(root / "sys/kernel/mm/hugepages"),
        thp_mode=sysfs.chosen(sysfs.read_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        ksm_running=sysfs.flag(sysfs.read_text(root / "sys/kernel/mm/ksm/run")),
        numa=sysfs.numa_nodes(root),
        cgroup_version=version,
        cgroups=controllers,
        qemu=qemu,
        accelerator=kvm,
        tun=(root / "dev/net/tun").exists(),
        bridge=bridge,
        nftables=nftables,
        vhost_net=(root / "dev/vhost-net").exists(),
        passt=find("passt") is not None,
        swtpm=find("swtpm") is not None,
        state_free_bytes=sysfs.free_bytes(paths.state),
        root=os.geteuid() == 0,
    )


async def _live(ask: Callable[[], int], root: Path) -> bool | None:
    """Ask the running kernel; None where it would not say (no privilege, or another root)."""
    if root != sysfs.HOST_ROOT:
        return None
    try:
        await asyncio.wait_for(probes.in_daemon_thread(ask), _LIVE_PROBE_DEADLINE_S)
    except (PermissionError, TimeoutError):
        return None
    except OSError:
        return False
    return True


def parse_machine_help(text: str) -> tuple[MachineType, ...]:
    """`qemu-system-x86_64 -machine help`: a name, then a description that ends in remarks like
    `(alias of pc-q35-7.2)`, `(default)`, `(deprecated)` (QEMU, softmmu/vl.c)."""
    machines = []
    for line in text.splitlines():
        name, _, description = line.strip().partition(" ")
        if not name or not description or description.rstrip().endswith("are:"):
            continue
        alias = re.search(r"\(alias of ([^)]+)\)", description)
        machines.append(
            MachineType(
                name,
                alias.group(1) if alias else "",
                "(default)" in description,
                "(deprecated)" in description,
            )
        )
    return tuple(machines)


async def _qemu_binaries(
    runner: Runner, cache_file: Path, find: Callable[[str], str | None]
) -> tuple[QemuBinary, ...]:
    """Version and machine types of each QEMU here. One that does not answer is left out: the doctor
    says why."""
    stored, fresh = _load_cache(cache_file), dict[str, Any]()
    binaries: list[QemuBinary] = []
    for name in QEMU_BINARIES:
        path = find(name)
        key = _file_key(path) if path else None
        if path is None or key is None:
            continue
        entry = stored.get(path)
        known = _from_cache(entry["binary"]) if entry and entry.get("key") == key else None
        if known is None:
            known = await _ask_qemu(runner, path)
        if known is not None:
            binaries.append(known)
            fresh[path] = {"key": key, "binary": asdict(known)}
    if fresh != stored:
        write_json(cache_file, fresh)
    return tuple(binaries)


async def _ask_qemu(runner: Runner, path: str) -> QemuBinary | None:
    try:
        version = await runner.run((path, "--version"), deadline_s=_ASK_QEMU_DEADLINE_S)
        machines = await runner.run((path, "-machine", "help"), deadline_s=_ASK_QEMU_DEADLINE_S)
    except (InnkeeperError, OSError):
        return None
    match = re.search(r"version (\S+)", version.text)
    return QemuBinary(path, match.group(1) if match else "", parse_machine_help(machines.text))


def _file_key(path: str) -> list[int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size]


def _load_cache(cache_file: Path) -> dict[str, Any]:
    try:
        data = json.loads(cache_file.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _from_cache(data: dict[str, Any]) -> QemuBinary | None:
    try:
        machines = tuple(MachineType(**machine) for machine in data["machines"])
        return QemuBinary(data["path"], data["version"], machines)
    except (TypeError, KeyError):
        return None
