"""The machine and the revision a result belongs to. No host name, no paths."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def gather() -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": _first_line("git", "rev-parse", "--short=12", "HEAD"),
        "modified": bool(_first_line("git", "status", "--porcelain", "--", "src", "bench")),
        "system": _system(),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "qemu": _first_line("qemu-system-x86_64", "--version").removeprefix("QEMU emulator version "),
        "libvirt": _first_line("virsh", "--version"),
        "root": os.geteuid() == 0,
    }


def one_line(facts: dict[str, Any]) -> str:
    peer = f", libvirt {facts['libvirt']}" if facts["libvirt"] else ""
    return (
        f"{facts['at'][:10]}, revision {facts['revision']}{' (modified)' if facts['modified'] else ''}; "
        f"{facts['system']}, {facts['cpus']} x {facts['cpu']}, {facts['memory_mib']} MiB, "
        f"load {facts['load'][0]}; Python {facts['python']}, QEMU {facts['qemu']}{peer}"
    )


def _first_line(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, cwd=REPOSITORY, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.partition("\n")[0].strip()


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", sys.platform)
    except OSError:
        return sys.platform


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
