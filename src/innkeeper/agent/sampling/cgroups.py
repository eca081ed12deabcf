"""The accounts of a cgroup that is a VM's own. One it shares with us says nothing about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from innkeeper.agent.sampling import accounts, proc
from innkeeper.agent.sampling.files import read_whole
from innkeeper.agent.sampling.rates import Pressure

T = TypeVar("T")

_V2: Final = ""  # the name of the one hierarchy of version 2 in /proc/PID/cgroup (cgroups(7))
_PRESSURES: Final = ("cpu", "memory", "io")


@dataclass(frozen=True, slots=True)
class Accounts:
    """Paths of files; empty where there is no group of its own, or none with that account. On a host with
    both versions the one that has the controller counts; pressure is kept by version 2 alone."""

    cpu: str = ""
    memory: str = ""
    pressure: tuple[str, ...] = ()

    def throttled_s(self) -> float | None:
        return _optional(self.cpu, proc.parse_cpu_stat)

    def refaults(self) -> int | None:
        return _optional(self.memory, accounts.parse_refaults)

    def pressures(self) -> Pressure | None:
        values = [_optional(path, proc.parse_pressure) for path in self.pressure]
        known = [value for value in values if value is not None]
        return Pressure(*known) if len(known) == len(_PRESSURES) else None


def membership(root: Path, pid: int) -> bytes:
    """In which groups a process is, as the kernel says it. Empty: not known."""
    try:
        return read_whole(f"{root}/{pid}/cgroup")
    except OSError:
        return b""


def accounts_of(root: Path, own: bytes) -> Accounts:
    """Of a process that is in the groups `own`. `root` is /proc."""
    theirs, ours = _groups(own), _groups(_optional(f"{root}/self/cgroup", bytes) or b"")
    folders: dict[str, str] = {}
    for line in (_optional(f"{root}/self/mounts", bytes) or b"").decode(errors="replace").splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[2] not in ("cgroup", "cgroup2"):
            continue
        for name in [_V2] if fields[2] == "cgroup2" else fields[3].split(","):
            if name in theirs and theirs[name] != ours.get(name) and theirs[name] != "/":
                folders.setdefault(name, fields[1] + theirs[name])
    unified = folders.get(_V2, "")
    pressure = tuple(f"{unified}/{what}.pressure" for what in _PRESSURES) if unified else ()
    return Accounts(
        cpu=_file(folders.get("cpu") or unified, "cpu.stat"),
        memory=_file(folders.get("memory") or unified, "memory.stat"),
        pressure=pressure if all(map(os.path.exists, pressure)) else (),
    )


def _file(folder: str, name: str) -> str:
    path = f"{folder}/{name}"
    return path if folder and os.path.exists(path) else ""


def _groups(told: bytes) -> dict[str, str]:
    """Controller -> its cgroup."""
    found: dict[str, str] = {}
    for line in told.decode(errors="replace").splitlines():
        _, names, path = line.split(":", 2)
        found |= dict.fromkeys(names.split(","), path)
    return found


def _optional(path: str, parse: Callable[[bytes], T | None]) -> T | None:
    """None where it is not there, or no longer: groups are removed."""
    if not path:
        return None
    try:
        return parse(read_whole(path))
    except OSError:
        return None
