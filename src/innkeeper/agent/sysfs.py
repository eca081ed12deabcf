"""Reading a host from the files below /proc and /sys.

Every function takes the `root` they lie under, so that tests describe a host as a few files. Reading
never fails: what is not there is zero, empty or None ("not known"). Sizes are bytes. Sources:
Documentation/admin-guide/{mm,cgroup-v1,cgroup-v2.rst}, Documentation/ABI/stable/sysfs-devices-node,
proc(5), cgroups(7).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

HOST_ROOT: Final = Path("/")

# A node's file has no MemAvailable; the kernel reckons it from these, less its own reserve
# (mm/show_mem.c, si_mem_available).
_RECLAIMABLE: Final = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")

CgroupVersion = Literal["v1", "v2", "hybrid", "none"]
Paging = Literal["", "ept", "npt", "shadow"]


@dataclass(frozen=True)
class HugePagePool:
    """A pool of huge pages of one size; counts are pages. `reserved` ones are free yet, and promised to
    mappings that have not touched them; sysfs tells that of the whole host only."""

    page_bytes: int
    total: int
    free: int
    reserved: int = 0


@dataclass(frozen=True)
class NumaNode:
    """`cpus` are those that are online; none of a node that is memory only. `distances` are to every
    node of the host, in the order of their ids (ACPI SLIT: 10 is the node itself); empty: not known.
    `available_bytes` is an estimate of what can be taken without swapping."""

    id: int
    cpus: tuple[int, ...]
    memory_bytes: int
    free_bytes: int
    available_bytes: int = 0
    hugepages: tuple[HugePagePool, ...] = ()
    distances: tuple[int, ...] = ()


@dataclass(frozen=True)
class CgroupController:
    """`base` is the cgroup below which we would make ours: the top for root, our own for a user."""

    name: str
    version: Literal[1, 2]
    base: str
    writable: bool


def read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def number(path: Path) -> int:
    text = read_text(path)
    return int(text) if text.isdigit() else 0


def flag(text: str) -> bool | None:
    return text == "1" if text else None


def chosen(text: str) -> str:
    """`madvise` from `always [madvise] never`."""
    match = re.search(r"\[(\w+)\]", text)
    return match.group(1) if match else ""


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """`0-2,5` (Documentation/core-api/cpu_hotplug.rst, "cpulist") -> 0, 1, 2, 5."""
    cpus: list[int] = []
    for part in text.replace(",", " ").split():
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)


def cpu_model(root: Path) -> str:
    for line in read_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return ""


def cpu_flags(root: Path = HOST_ROOT) -> tuple[str, ...]:
    for line in read_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return tuple(value.split())
    return ()


def online_cpus(root: Path) -> tuple[int, ...]:
    online = parse_cpu_list(read_text(root / "sys/devices/system/cpu/online"))
    if online:
        return online
    return tuple(range(read_text(root / "proc/cpuinfo").count("processor\t")))


def meminfo(root: Path = HOST_ROOT, path: str = "proc/meminfo") -> dict[str, int]:
    """/proc/meminfo (or a NUMA node's) in bytes; lines without a unit are plain counts."""
    found: dict[str, int] = {}
    for line in read_text(root / path).splitlines():
        match = re.match(r"(?:Node \d+ )?([^:\s]+):\s+(\d+)( kB)?", line)
        if match:
            found[match.group(1)] = int(match.group(2)) * (1024 if match.group(3) else 1)
    return found


def hugepage_pools(folder: Path) -> tuple[HugePagePool, ...]:
    """The pools below a `hugepages` folder of sysfs, small pages first; the same layout for the
    whole host and for one NUMA node."""
    pools = []
    for entry in _listed(folder, "hugepages-*kB"):
        size = re.search(r"hugepages-(\d+)kB", entry.name)
        if size:
            counts = [number(entry / f"{what}_hugepages") for what in ("nr", "free", "resv")]
            pools.append(HugePagePool(int(size.group(1)) * 1024, *counts))
    return tuple(sorted(pools, key=lambda pool: pool.page_bytes))


def _listed(folder: Path, pattern: str) -> Iterable[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return ()


def numa_nodes(root: Path = HOST_ROOT) -> tuple[NumaNode, ...]:
    """The nodes with CPUs or memory. A kernel without NUMA has no such folder: the whole host is
    then node 0, so that nobody needs a special case."""
    online = set(online_cpus(root))
    nodes = []
    for entry in _listed(root / "sys/devices/system/node", "node[0-9]*"):
        memory = meminfo(entry, "meminfo")
        cpus = parse_cpu_list(read_text(entry / "cpulist"))
        distances = read_text(entry / "distance").split()
        nodes.append(
            NumaNode(
                id=int(entry.name.removeprefix("node")),
                cpus=tuple(cpu for cpu in cpus if cpu in online or not online),
                memory_bytes=memory.get("MemTotal", 0),
                free_bytes=memory.get("MemFree", 0),
                available_bytes=sum(memory.get(what, 0) for what in _RECLAIMABLE),
                hugepages=hugepage_pools(entry / "hugepages"),
                distances=tuple(int(word) for word in distances if word.isdigit()),
            )
        )
    memory = meminfo(root)
    total, free, available = (memory.get(what, 0) for what in ("MemTotal", "MemFree", "MemAvailable"))
    pools = hugepage_pools(root / "sys/kernel/mm/hugepages")
    if len(nodes) == 1 and memory:
        # The only node has all the memory; kernels with hotplugged memory have been seen to give
        # a fifth of it in the node's own file.
        (node,) = nodes
        return (
            replace(
                node,
                memory_bytes=total,
                free_bytes=free,
                available_bytes=available,
                hugepages=pools or node.hugepages,
            ),
        )
    if nodes:
        return tuple(sorted(nodes, key=lambda node: node.id))
    return (NumaNode(0, online_cpus(root), total, free, available, pools),)


def cgroups(
    root: Path = HOST_ROOT, uid: int | None = None
) -> tuple[CgroupVersion, tuple[CgroupController, ...]]:
    """The controllers mounted, v1 and v2. Named v1 hierarchies (`name=systemd`) control nothing and
    are left out; a v2 mount without controllers does not make a host "hybrid"."""
    privileged = (os.geteuid() if uid is None else uid) == 0
    own = _own_cgroups(root)
    found: list[CgroupController] = []
    for line in read_text(root / "proc/mounts").splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[2] not in ("cgroup", "cgroup2"):
            continue
        top = root / fields[1].lstrip("/")
        if fields[2] == "cgroup2":
            base = top if privileged else top / own.get("", "/").lstrip("/")
            names = read_text(base / "cgroup.controllers").split()
        else:
            names = [name for name in fields[3].split(",") if name in own and "=" not in name]
            base = top if privileged or not names else top / own[names[0]].lstrip("/")
        version: Literal[1, 2] = 2 if fields[2] == "cgroup2" else 1
        writable = os.access(base, os.W_OK)
        found.extend(CgroupController(name, version, str(base), writable) for name in names)
    versions = {one.version for one in found}
    result: CgroupVersion = "none"
    if versions:
        result = "hybrid" if len(versions) == 2 else ("v2" if 2 in versions else "v1")
    return result, tuple(sorted(found, key=lambda one: (one.version, one.name)))


def _own_cgroups(root: Path) -> dict[str, str]:
    """Controller -> our cgroup in its hierarchy; v2 is the empty name (cgroups(7))."""
    own: dict[str, str] = {}
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        own |= dict.fromkeys(names.split(","), path)
    return own


def guest_paging(root: Path = HOST_ROOT) -> Paging:
    """Who translates guest addresses: the CPU by EPT (Intel) or NPT (AMD), or KVM by shadow page tables.
    Empty without KVM. Changes when the module is loaded again with another parameter."""
    hardware: tuple[tuple[str, Paging], ...] = (("kvm_intel", "ept"), ("kvm_amd", "npt"))
    for module, name in hardware:
        text = read_text(root / "sys/module" / module / "parameters" / name)
        if text:
            return name if text in ("Y", "1") else "shadow"
    return ""


def free_bytes(folder: Path) -> int:
    """Space an ordinary user may still fill, where `folder` is or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
