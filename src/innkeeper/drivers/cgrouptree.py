"""Where in each hierarchy our groups go, and what of it we may use.

Root: at the top of the hierarchy, beside the groups of systemd. Below its own service they would be in
the way of its restart (a group of v2 with controlled children takes no process). A daemon that somebody put
into a group that is not systemd's was meant to stay within it with all it starts: then below that one.
A user: below the group they were delegated (systemd.resource-control(5), Delegate=), which under v2 the
daemon leaves for a leaf.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from innkeeper.drivers.cgroupfiles import Files
from innkeeper.drivers.cgroupvalues import Controller, Version

PARENT: Final = "innkeeper"
DAEMON_LEAF: Final = "innkeeper-daemon"
CONTROLLERS: Final[tuple[Controller, ...]] = ("cpu", "cpuacct", "memory", "io")
_NAMES_V1: Final[dict[Controller, str]] = {
    "cpu": "cpu", "cpuacct": "cpuacct", "memory": "memory", "io": "blkio",
}  # fmt: skip
_SYSTEMD_SUFFIXES: Final = (".slice", ".scope", ".service")


@dataclass(frozen=True)
class Base:
    """The group below which ours are made."""

    version: Version
    path: Path


@dataclass(frozen=True)
class _Mount:
    version: Version
    top: Path
    own: str  # the group of this process, from the top
    controllers: frozenset[Controller]


def explore(root: Path, files: Files) -> tuple[dict[Controller, Base], dict[Controller, str]]:
    """Where each controller's groups go; and of each controller why it cannot be used, empty where it can."""
    bases: dict[Controller, Base] = {}
    reasons: dict[Controller, str] = {
        name: "it is not mounted, or not in this kernel" for name in CONTROLLERS if name != "cpuacct"
    }
    for mount in _mounts(root, files):
        path = _start(mount, files)
        told = _try(mount, path, files)
        for controller in mount.controllers:
            why = told.get(controller, "")
            if controller in bases:
                continue
            if not why:
                bases[controller] = Base(mount.version, path)
            if controller in reasons:
                reasons[controller] = why
    return bases, reasons


def _mounts(root: Path, files: Files) -> list[_Mount]:
    own = _groups_of(root, "self")
    found = []
    for line in _lines(root / "proc/self/mounts"):
        fields = line.split()
        if len(fields) < 4 or fields[2] not in ("cgroup", "cgroup2"):
            continue
        top = root / fields[1].lstrip("/")
        if fields[2] == "cgroup2":
            has = _words(files, top / "cgroup.controllers")
            names = {name for name in CONTROLLERS if name in has or (name == "cpuacct" and "cpu" in has)}
            found.append(_Mount(2, top, own.get("", "/"), frozenset(names)))
        else:
            options = fields[3].split(",")
            names = {name for name, called in _NAMES_V1.items() if called in options and called in own}
            place = own[_NAMES_V1[next(iter(names))]] if names else "/"
            found.append(_Mount(1, top, place, frozenset(names)))
    return [mount for mount in found if mount.controllers]


def _start(mount: _Mount, files: Files) -> Path:
    """The group below which ours go."""
    own = mount.own.removesuffix(f"/{DAEMON_LEAF}") or "/"
    managed = any(part.endswith(_SYSTEMD_SUFFIXES) for part in own.split("/"))
    path = mount.top / own.lstrip("/")
    if (_privileged() and managed) or not files.is_dir(path):
        return mount.top
    return path


def _privileged() -> bool:
    return os.geteuid() == 0


def _try(mount: _Mount, path: Path, files: Files) -> dict[Controller, str]:
    """Why each of the controllers cannot be used there, if so; found by making a group and removing it."""
    child = path / f"{PARENT}-probe-{os.getpid()}"
    try:
        files.mkdir(child)
    except OSError as error:
        return dict.fromkeys(mount.controllers, f"no group may be made in {path}: {error.strerror}")
    try:
        return _enable(mount, path, files) if mount.version == 2 else {}
    finally:
        with contextlib.suppress(OSError):
            files.rmdir(child)


def _enable(mount: _Mount, path: Path, files: Files) -> dict[Controller, str]:
    has = _words(files, path / "cgroup.controllers")
    told: dict[Controller, str] = {}
    for controller in mount.controllers - {"cpuacct"}:
        if controller not in has:
            told[controller] = f"it was not delegated to {path}"
            continue
        try:
            _enable_one(path, controller, files)
        except OSError as error:
            told[controller] = (
                f"other processes are in {path}"
                if error.errno == errno.EBUSY
                else f"it cannot be passed on in {path}: {error.strerror}"
            )
    if "cpu" in told:
        told["cpuacct"] = told["cpu"]
    return told


def _enable_one(path: Path, controller: str, files: Files) -> None:
    control = path / "cgroup.subtree_control"
    if controller in _words(files, control):
        return
    try:
        files.write(control, f"+{controller}")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # The no-internal-process rule: if it is only us who are in the way, we go into a leaf.
        leaf = path / DAEMON_LEAF
        with contextlib.suppress(FileExistsError):
            files.mkdir(leaf)
        files.write(leaf / "cgroup.procs", str(os.getpid()))
        files.write(control, f"+{controller}")


def make_parent(path: Path, version: Version, files: Files) -> None:
    """The group of one daemon, with its controllers passed on. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        files.mkdir(path)
    if version == 2:
        control = path / "cgroup.subtree_control"
        passed = _words(files, control)
        for name in _words(files, path / "cgroup.controllers"):
            if name in CONTROLLERS and name not in passed:
                files.write(control, f"+{name}")


def of_process(root: Path, pid: int, uid: str) -> dict[Controller, Path]:
    """The groups called `uid`, of ours, that a process is in."""
    groups = _groups_of(root, str(pid))
    found: dict[Controller, Path] = {}
    for line in _lines(root / "proc/self/mounts"):
        fields = line.split()
        if len(fields) < 4 or fields[2] not in ("cgroup", "cgroup2"):
            continue
        top = root / fields[1].lstrip("/")
        for controller, called in _NAMES_V1.items():
            key = "" if fields[2] == "cgroup2" else called
            place = groups.get(key, "")
            mounted = key == "" or called in fields[3].split(",")
            if mounted and place.endswith(f"/{uid}") and f"/{PARENT}-" in place:
                found.setdefault(controller, top / place.lstrip("/"))
    return found


def protected(path: Path, files: Files) -> int | None:
    """The least memory.min of the groups above this one, since each bounds what is kept below it
    (cgroup-v2.rst); None at the top, whose group has none."""
    least: int | None = None
    for above in path.parents:
        try:
            text = files.read(above / "memory.min").strip()
        except OSError:
            break
        if text.isdigit():
            least = int(text) if least is None else min(least, int(text))
    return least


def running(root: Path) -> int:
    """How many processes run or could, now (proc_stat(5), procs_running)."""
    for line in _lines(root / "proc/stat"):
        key, _, value = line.partition(" ")
        if key == "procs_running" and value.isdigit():
            return int(value)
    return 0


def _groups_of(root: Path, pid: str) -> dict[str, str]:
    """Controller -> group; v2 is the empty name."""
    found: dict[str, str] = {}
    for line in _lines(root / "proc" / pid / "cgroup"):
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        found |= dict.fromkeys(names.split(","), path)
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _words(files: Files, path: Path) -> list[str]:
    try:
        return files.read(path).split()
    except OSError:
        return []


def how_to_get(privileged: bool, root: Path = Path("/")) -> str:
    """What gives a daemon its control groups: to root, the kernel; to a user, their systemd, which gives
    away no controllers of cgroup v1 (systemd.resource-control(5), Delegate=)."""
    if privileged:
        return "mount the cgroup hierarchies writable, as systemd does: mount -t cgroup2 none /sys/fs/cgroup"
    if not (root / "run/systemd/system").is_dir():
        return "users are given control groups by systemd, which does not run here; as root: inn serve"
    if not (root / "sys/fs/cgroup/cgroup.controllers").exists():
        return "users are given control groups where the host has cgroup v2 alone; as root: inn serve"
    return (
        "start the daemon in a group of its own:"
        " inn serve --stop && systemd-run --user --scope -p Delegate=yes inn serve"
    )
