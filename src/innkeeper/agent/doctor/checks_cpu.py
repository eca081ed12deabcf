"""Processor and memory: KVM, clock, huge pages, page sharing, free memory."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from innkeeper.agent import probes, sysfs
from innkeeper.agent.doctor.base import DoctorContext, Finding, Verdict, check
from innkeeper.engine import kvm
from innkeeper.units import GiB, MiB, human_size

# What one small guest with QEMU needs, and what a full Debian guest needs.
_MEMORY_FAIL_BYTES: Final = 256 * MiB
_MEMORY_WARN_BYTES: Final = 1 * GiB
# A vDSO reading takes 20-60 ns; a system call, which means a slow clock source, 300 and more.
_SLOW_CLOCK_NS: Final = 250.0
# Reserving a page moves other memory out of the way: only where there is plenty.
_RESERVE_MARGIN_BYTES: Final = 2 * GiB


@check("kvm", deadline_s=12.0)
async def check_kvm(context: DoctorContext) -> Finding:
    """Runs a loop in a vCPU (never from the cache: somebody may just have repaired it)."""
    verdict = await kvm.probe(context.runner, device=context.kvm_device, argv=context.kvm_argv)
    if context.kvm_cache is not None:
        kvm.remember(context.kvm_cache, verdict, context.kvm_device)
    if verdict.kind == "hardware":
        return Finding("kvm", "ok", f"hardware speed: {verdict.detail}, API {verdict.api_version}")
    detail = f"{verdict.kind}: {verdict.detail}; VMs run under TCG"
    absent = verdict.repair.startswith("modprobe")
    if absent and not _virtualization_flag(context):
        return Finding("kvm", "warn", f"{detail}; the CPU shows no VT-x (vmx) or AMD-V (svm)")
    return Finding("kvm", "warn", detail, verdict.repair, fixable=absent and modules_loadable(context))


def _virtualization_flag(context: DoctorContext) -> bool:
    text = sysfs.read_text(context.path("proc/cpuinfo"))
    return re.search(r"^flags\s*:.*\b(vmx|svm)\b", text, re.MULTILINE) is not None


def modules_loadable(context: DoctorContext) -> bool:
    """Whether there are kernel modules at all, and a program that loads them."""
    release = sysfs.read_text(context.path("proc/sys/kernel/osrelease"))
    return (
        bool(release) and context.path(f"lib/modules/{release}").is_dir() and bool(context.find("modprobe"))
    )


@check("kvm-access")
def check_kvm_access(context: DoctorContext) -> Finding:
    """Who may open the device: QEMU runs unprivileged, and users run VMs of their own."""
    try:
        found = os.stat(context.kvm_device)
    except OSError as error:
        return Finding("kvm-access", "info", f"{context.kvm_device}: {error.strerror}")
    mode, group = stat.S_IMODE(found.st_mode), kvm.group_of(found)
    detail = f"{context.kvm_device} has mode {mode:04o}, group {_group_name(found.st_gid)}"
    if mode & 0o006 == 0o006 or group == "kvm":
        return Finding("kvm-access", "ok", detail)
    if not context.privileged and os.access(context.kvm_device, os.R_OK | os.W_OK):
        return Finding("kvm-access", "ok", f"{detail}; open to you")
    repair = kvm.open_to_kvm(context.kvm_device)
    if not context.privileged:
        joining = kvm.join_kvm(context.user)
        repair = f"usermod -aG {group} {context.user}" if group else f"{repair} && {joining}"
    return Finding(
        "kvm-access",
        "info" if context.privileged else "warn",
        f"{detail}: only root{f' and group {group}' if group else ''} may use it",
        repair,
        fixable=stat.S_ISCHR(found.st_mode),
    )


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


@check("clock")
def check_clock(context: DoctorContext) -> Finding:
    """Reads the clock: a slow one costs every guest, since QEMU reads it all the time."""
    folder = context.path("sys/devices/system/clocksource/clocksource0")
    current = sysfs.read_text(folder / "current_clocksource") or "unknown"
    cost_ns = probes.clock_read_ns()
    detail = f"{current}, {cost_ns:.0f} ns per reading"
    if cost_ns <= _SLOW_CLOCK_NS:
        return Finding("clock", "ok", detail)
    others = sysfs.read_text(folder / "available_clocksource").split()
    better = next((name for name in ("tsc", "kvm-clock") if name in others and name != current), "")
    repair = f"echo {better} > {folder}/current_clocksource" if better else ""
    return Finding("clock", "warn", f"{detail} (a fast one takes under {_SLOW_CLOCK_NS:.0f})", repair)


@check("memory")
def check_memory(context: DoctorContext) -> Finding:
    memory = sysfs.meminfo(context.root)
    free, total = memory.get("MemAvailable", 0), memory.get("MemTotal", 0)
    swap = memory.get("SwapTotal", 0)
    nodes = len(sysfs.numa_nodes(context.root))
    verdict: Verdict = "ok"
    if free < _MEMORY_WARN_BYTES:
        verdict = "fail" if free < _MEMORY_FAIL_BYTES else "warn"
    swapping = f"swap {human_size(swap)}" if swap else "no swap"
    detail = f"{human_size(free)} of {human_size(total)} available, {swapping}, {nodes} NUMA node(s)"
    return Finding("memory", verdict, detail)


@check("hugepages", deadline_s=15.0)
def check_hugepages(context: DoctorContext) -> Finding:
    """Counts the pools; as root takes one page of each size and gives it back."""
    folder = context.path("sys/kernel/mm/hugepages")
    pools = sysfs.hugepage_pools(folder)
    if not pools:
        return Finding("hugepages", "info", "this kernel has no huge page pools")
    available = sysfs.meminfo(context.root).get("MemAvailable", 0)
    parts, refused = [], 0
    for pool in pools:
        text = f"{human_size(pool.page_bytes)}: {pool.free} of {pool.total} free"
        if context.privileged and pool.free == 0:
            if available < 2 * pool.page_bytes + _RESERVE_MARGIN_BYTES:
                text += ", too little memory to try one"
            elif _reserve_one(folder / f"hugepages-{pool.page_bytes // 1024}kB"):
                text += ", one can be reserved"
            else:
                text, refused = f"{text}, none can be reserved", refused + 1
        parts.append(text)
    return Finding("hugepages", "info" if refused else "ok", "; ".join(parts))


def _reserve_one(folder: Path) -> bool:
    """Grow the pool by a page and shrink it again. The kernel answers a request it cannot meet by
    doing less, so the count is read back (Documentation/admin-guide/mm/hugetlbpage.rst). What is
    given back is one page, not the old count, which somebody else may have changed meanwhile."""
    file = folder / "nr_hugepages"
    with _only_doctor(folder):
        try:
            before = int(file.read_text())
            file.write_text(str(before + 1))
            after = int(file.read_text())
        except OSError:
            return False
        if after > before:
            file.write_text(str(after - 1))
        return after > before


@contextlib.contextmanager
def _only_doctor(folder: Path) -> Iterator[None]:
    """Two doctors at the same time take turns: else each could count the other's page as its own.
    The kernel drops the lock with the descriptor, so a killed doctor locks out nobody."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@check("thp")
def check_thp(context: DoctorContext) -> Finding:
    """Asks for memory in transparent huge pages and sees whether it comes."""
    file = context.path("sys/kernel/mm/transparent_hugepage/enabled")
    mode = sysfs.chosen(sysfs.read_text(file))
    if not mode:
        return Finding("thp", "info", "this kernel has no transparent huge pages")
    if mode == "never":
        return Finding("thp", "info", "off: guest memory costs more TLB misses", f"echo madvise > {file}")
    given = probes.huge_page_given()
    if not given:
        return Finding("thp", "info", f"{mode}, but none was given: memory is fragmented or short")
    return Finding("thp", "ok", f"{mode}, {human_size(given)} given when asked for 8 MiB")
