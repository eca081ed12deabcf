"""The host inside the lab: its KVM module, what KVM counts, where memory lies."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Literal

from innkeeper.agent import sysfs
from vms.waiting import eventually

# Set in the lab, to the directory of the tiny image that was brought along.
IN_LAB = "INNKEEPER_LAB_TINY"
Paging = Literal["npt", "shadow"]
DEBUG = Path("/sys/kernel/debug/kvm")
CGROUPS = Path("/sys/fs/cgroup")


def reload_kvm(paging: Paging) -> bool:
    """Load the CPU's KVM module anew, unless it is as wanted already; whether it was. No VM may run."""
    module, switch = ("kvm_intel", "ept") if _is_intel() else ("kvm_amd", "npt")
    now = "shadow" if sysfs.guest_paging() == "shadow" else "npt"
    if Path("/dev/kvm").exists() and now == paging:
        return False
    # A VM that ended a moment ago may still be taken down.
    eventually(lambda: _run("modprobe", "-r", module) == 0, f"{module} can be unloaded", 10.0, every_s=0.2)
    assert _run("modprobe", module, f"{switch}={int(paging == 'npt')}") == 0
    # udev gives the new node to group kvm.
    eventually(
        lambda: Path("/dev/kvm").exists() and Path("/dev/kvm").stat().st_gid, "/dev/kvm is there", 15.0
    )
    return True


def _is_intel() -> bool:
    return re.search(r"^flags\s*:.*\bvmx\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE) is not None


def _run(*argv: str) -> int:
    return subprocess.run(argv, check=False, capture_output=True).returncode


def kvm_counts(pid: int) -> dict[str, int]:
    """What KVM counted of the VM of this process (Documentation/virt/kvm/api.rst, 4.133 has the names)."""
    (folder,) = DEBUG.glob(f"{pid}-*")
    counts = {}
    for file in folder.iterdir():
        if file.is_file():
            text = file.read_text().strip()
            if text.isdigit():
                counts[file.name] = int(text)
    return counts


def vcpu_seconds(pid: int) -> float:
    """CPU time of the vCPU threads (proc(5), fields 14 and 15 of stat)."""
    ticks = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().startswith("CPU "):
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / 100


def memory_kib(pid: int, what: str, of: str = "") -> int:
    """A line of /proc/PID/smaps, such as Private_Dirty, summed over the mappings with `of` in their name."""
    total, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            counts = of in line
        elif counts and line.startswith(f"{what}:"):
            total += int(line.split()[1])
    return total


def ram_maps(pid: int) -> list[str]:
    """How the kernel maps the RAM of a QEMU, a line a piece (proc(5), numa_maps)."""
    lines = Path(f"/proc/{pid}/numa_maps").read_text().splitlines()
    return [line for line in lines if "innkeeper-ram" in line]


def ram_pages_by_node(pid: int) -> dict[int, int]:
    """Of guest RAM, by the kernel's own count; pages of the size it is mapped with."""
    found: dict[int, int] = {}
    for line in ram_maps(pid):
        for node, count in re.findall(r" N(\d+)=(\d+)", line):
            found[int(node)] = found.get(int(node), 0) + int(count)
    return found


def vcpu_places(pid: int) -> list[set[int]]:
    """The host CPUs each vCPU thread may run on, by number (QEMU names its threads)."""
    places = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        words = (task / "comm").read_text().split()
        if words[:1] == ["CPU"]:
            places[int(words[1].split("/")[0])] = os.sched_getaffinity(int(task.name))
    return [places[number] for number in sorted(places)]


def cgroup_of(pid: int) -> Path:
    """Its directory in the unified hierarchy (cgroups(7))."""
    line = next(one for one in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if one.startswith("0::"))
    return CGROUPS / line.removeprefix("0::/")
