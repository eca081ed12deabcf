"""What memory the host has for VMs, and how pressed it is."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from innkeeper.agent import sysfs
from innkeeper.agent.tune.balloon import Account
from innkeeper.engine.base import Machine
from innkeeper.errors import EngineError

_SOME: Final = re.compile(rb"^some avg10=([0-9.]+)", re.M)
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def of_host(root: Path = Path("/")) -> Account:
    """Without what huge pages take: that is nobody else's."""
    found = sysfs.meminfo(root)
    return Account(found.get("MemTotal", 0) - found.get("Hugetlb", 0), found.get("MemAvailable", 0))


def of_vms(capacity: int, machines: Iterable[Machine], root: Path = Path("/")) -> Account:
    """What is left of what all VMs together may have. RAM that several of them share counts once."""
    used, files = 0, dict[tuple[int, int], int]()
    for machine in machines:
        with contextlib.suppress(EngineError, OSError, ValueError, IndexError):  # it has just ended
            files |= machine.ram_backing()
            # resident, less the part of it that lies in files (proc_pid_statm(5)): QEMU's own, and of a
            # private view the pages it has written.
            words = (root / "proc" / str(machine.pid) / "statm").read_bytes().split()
            used += (int(words[1]) - int(words[2])) * _PAGE_BYTES
    return Account(capacity, capacity - used - sum(files.values()))


def pressure(root: Path = Path("/"), what: Literal["cpu", "memory"] = "memory") -> float | None:
    """Share of the last 10 s in which something waited for it (Documentation/accounting/psi.rst); None where
    the kernel does not count that."""
    try:
        match = _SOME.search((root / "proc/pressure" / what).read_bytes())
    except OSError:
        return None
    return float(match[1]) / 100 if match else None
