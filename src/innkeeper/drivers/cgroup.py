"""Control groups: one for each VM, with QEMU and what belongs to it, and nothing else (cgroups(7)).

As root they lie at the top of each hierarchy, beside what systemd manages; a user has them below the group
that was delegated to them. `.../innkeeper-<hash of the state directory>/<uid>`: daemons with other state
directories do not meet. v1 and v2 are used side by side, controller by controller, as the host has them.

What the kernel refuses is an error of ours with its reason; a group that somebody removed is no error:
`write` says so, and `create` makes it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from innkeeper.drivers import cgrouptree
from innkeeper.drivers.cgroupfiles import Files, SystemFiles
from innkeeper.drivers.cgroupvalues import (
    Controller,
    CpuWeight,
    Setting,
    Version,
    Write,
    controller_of,
    shares_of,
    writes,
)
from innkeeper.errors import Failed, Unsupported

log = logging.getLogger("innkeeper.cgroup")

HOST_ROOT: Final = Path("/")
# Processes that were killed are gone within milliseconds; one stuck in the kernel keeps its group.
_REMOVE_PAUSES_S: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, *([0.2] * 25))
_GONE: Final = (errno.ENOENT, errno.ENODEV)


@dataclass(frozen=True)
class Place:
    """Where one controller has the group."""

    version: Version
    path: Path


class Group:
    """The control group of one VM; one without places stands for a host where we may have none."""

    def __init__(self, uid: str, places: Mapping[Controller, Place], files: Files) -> None:
        self.uid = uid
        self.places = dict(places)
        self._files = files
        self._written: dict[Path, str] = {}
        self.moved_in: set[int] = set()
        """The processes that `add` has put here; whoever is not here any more, and lives, was taken out."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its directories; several controllers may share one."""
        return tuple(dict.fromkeys(place.path for place in self.places.values()))

    def exists(self) -> bool:
        return all(self._files.is_dir(path) for path in self.paths)

    def make(self) -> None:
        """Raises Failed when the kernel refuses."""
        for path in self.paths:
            if not self._files.is_dir(path):
                self._written = {file: text for file, text in self._written.items() if file.parent != path}
                with _told(f"Cannot make the control group {path}"), contextlib.suppress(FileExistsError):
                    self._files.mkdir(path)

    def add(self, pids: Iterable[int]) -> None:
        """Move processes in, with all their threads; one that has ended is no error. May take the kernel
        some 20 ms, also where nothing is to be moved, so what is in already is not told again; call it beside
        the event loop. Memory they have already stays accounted where it was. Raises Failed, also when the
        group is gone."""
        wanted = [pid for pid in pids if pid > 0]  # to the kernel 0 is whoever writes it
        for path in self.paths:
            with _told(f"Cannot read who is in {path}"):
                inside = self._files.read(path / "cgroup.procs").split()
            for pid in wanted:
                if str(pid) in inside:
                    continue
                with _told(f"Cannot move process {pid} into {path}"), contextlib.suppress(ProcessLookupError):
                    self._files.write(path / "cgroup.procs", str(pid))
        self.moved_in |= {*wanted}

    def pids(self) -> set[int]:
        """Of all that is in any of its places."""
        found: set[int] = set()
        for path in self.paths:
            with contextlib.suppress(OSError):
                found |= {int(word) for word in self._files.read(path / "cgroup.procs").split()}
        return found

    def holds(self, pid: int) -> bool:
        """Whether it is there and the process is in it, for every controller."""
        try:
            return all(str(pid) in self._files.read(path / "cgroup.procs").split() for path in self.paths)
        except OSError:
            return False

    def write(self, *settings: Setting) -> bool:
        """What is so already is not written again. False: the group is gone. Raises Unsupported for what
        this host cannot do, Failed when the kernel refuses."""
        again: list[Write] = []
        there: set[Path] = set()
        for setting in settings:
            place = self.places.get(controller_of(setting))
            if place is None:
                raise Unsupported(f"This host gives us no control group for {controller_of(setting)}")
            if place.path not in there and not self._files.is_dir(place.path):
                return False
            there.add(place.path)
            for one in writes(setting, place.version):
                try:
                    if not self._write(place.path, one):
                        return False
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise _failed(f"Cannot set {_files_of(one)} in {place.path}", error) from error
                    again.append(one)
        # Two that bound each other, as memory and memory with swap: after the other it may be right.
        for one in again:
            place = self.places[one.controller]
            with _told(f"Cannot set {_files_of(one)} in {place.path}"):
                if not self._write(place.path, one):
                    return False
        return True

    def _write(self, path: Path, what: Write) -> bool:
        found = False
        for name, text in what.values:
            file = path / name
            if self._written.get(file) == text:
                found = True
                continue
            try:
                self._files.write(file, text)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                if not self._files.is_dir(path):
                    return False
                continue
            self._written[file] = text
            found = True
        if not found and what.needed:
            raise Unsupported(f"This host's kernel has no {_files_of(what)}")
        return True

    def read(self, controller: Controller, name: str) -> str | None:
        """A file of the group as it is; None where there is none."""
        place = self.places.get(controller)
        if place is None:
            return None
        try:
            return self._files.read(place.path / name)
        except OSError:
            return None

    def version(self, controller: Controller) -> Version | None:
        place = self.places.get(controller)
        return place.version if place else None

    def counts(self, controller: Controller, name: str) -> dict[str, int]:
        """A flat keyed file such as cpu.stat or memory.stat; empty where there is none."""
        found = {}
        for line in (self.read(controller, name) or "").splitlines():
            key, _, value = line.partition(" ")
            if value.strip().isdigit():
                found[key] = int(value)
        return found

    def cpu_s(self) -> float | None:
        """CPU time of all that is or was in it."""
        if self.version("cpu") == 2:
            used = self.counts("cpu", "cpu.stat").get("usage_usec")
            return None if used is None else used / 1e6
        text = (self.read("cpuacct", "cpuacct.usage") or "").strip()
        return int(text) / 1e9 if text.isdigit() else None

    def memory_bytes(self) -> int | None:
        """Memory that is accounted to it now, page cache included."""
        name = "memory.current" if self.version("memory") == 2 else "memory.usage_in_bytes"
        text = (self.read("memory", name) or "").strip()
        return int(text) if text.isdigit() else None

    def try_remove(self) -> bool:
        """True when nothing of it is left. Raises nothing: what lives in it keeps it."""
        left = False
        for path in self.paths:
            try:
                self._files.rmdir(path)
            except FileNotFoundError:
                pass
            except OSError:
                left = True
        self._written.clear()
        return not left


@dataclass
class Cgroups:
    """All groups of one daemon. Without arguments: of a host that gives us none."""

    controllers: dict[Controller, str] = field(default_factory=dict)
    """Of each controller why it cannot be used; empty where it can."""
    bases: Mapping[Controller, Place] = field(default_factory=dict)
    files: Files = field(default_factory=SystemFiles)
    root: Path = HOST_ROOT

    def __post_init__(self) -> None:
        self._groups: dict[str, Group] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._weight: int | None = None
        self._protected: dict[str, int] = {}

    @classmethod
    def detect(cls, state: Path, root: Path = HOST_ROOT, files: Files | None = None) -> Cgroups:
        """What this host gives us, found by trying. Never fails. May move this process: a group of v2
        whose children are controlled has no processes of its own (cgroup-v2.rst)."""
        files = files or SystemFiles()
        name = hashlib.sha256(str(state).encode()).hexdigest()[:12]
        bases, reasons = cgrouptree.explore(root, files)
        places = {
            controller: Place(base.version, base.path / f"{cgrouptree.PARENT}-{name}")
            for controller, base in bases.items()
        }
        return cls(reasons, places, files, root)

    def why_not(self, controller: Controller) -> str:
        """Empty when groups can be told about this."""
        return self.controllers.get(controller, "this host has no control groups")

    def create(self, uid: str) -> Group:
        """The group of a VM, made if it is not there. Raises Failed when the kernel refuses."""
        if (leaving := self._leaving.pop(uid, None)) is not None:
            leaving.cancel()
        group = self._groups.get(uid)
        if group is None:
            group = Group(uid, self._places(uid), self.files)
        self._make_parents(group)
        group.make()
        self._groups[uid] = group
        return group

    def get(self, uid: str) -> Group | None:
        return self._groups.get(uid)

    def group_of(self, uid: str) -> Group:
        """To read what is left of the group of a VM that has ended, whichever daemon made it."""
        return self._groups.get(uid) or Group(uid, self._places(uid), self.files)

    def adopt(self, uid: str, pids: Iterable[int]) -> Group:
        """The group of a VM that runs already: the one its first process is in, wherever an earlier daemon
        made it; else one is made, and the processes moved in. Raises Failed when the kernel refuses."""
        pids = tuple(pids)
        group = Group(uid, self._places(uid), self.files)
        found = cgrouptree.of_process(self.root, pids[0], uid) if pids else {}
        for controller, path in found.items():
            if controller in group.places:
                group.places[controller] = Place(group.places[controller].version, path)
        self._groups[uid] = group
        group = self.create(uid)
        group.add(pids)
        return group

    def _places(self, uid: str) -> dict[Controller, Place]:
        return {name: Place(base.version, base.path / uid) for name, base in self.bases.items()}

    def _make_parents(self, group: Group) -> None:
        """Looked at each time: with the last group they go."""
        for place in dict.fromkeys(group.places.values()):
            parent = place.path.parent
            if not self.files.is_dir(parent):
                with _told(f"Cannot make the control group {parent}"):
                    cgrouptree.make_parent(parent, place.version, self.files)
                self._weigh()
                self._protected.clear()

    def weigh(self, weight: int) -> None:
        """Of all VMs together, against the processes and groups beside them. Where that is not ours to say,
        as of a user's groups, nothing happens."""
        self._weight = weight
        self._weigh()

    def beside(self, cpus: int, ours: int = 0) -> int:
        """The weight of what runs beside all VMs: the other groups there; under v1 processes as well, of
        which one for each CPU is reckoned with, or as many as are running and not `ours`."""
        base = self.bases.get("cpu")
        if base is None:
            return 0
        name = "cpu.weight" if base.version == 2 else "cpu.shares"
        shares = 0
        for path in self.files.children(base.path.parent):
            if path != base.path:
                with contextlib.suppress(OSError, ValueError):
                    shares += int(self.files.read(path / name))
        if base.version == 2:
            return shares
        return shares * 100 // shares_of(100) + 100 * max(cpus, cgrouptree.running(self.root) - ours)

    def protect(self, least_bytes: int, low_bytes: int) -> None:
        """Of all VMs together: what a group keeps it keeps only within what the groups above it do
        (cgroup-v2.rst, memory.min). v1 has no such thing. Where it is not ours to say, nothing happens."""
        base = self.bases.get("memory")
        if base is None or base.version == 1 or not self.files.is_dir(base.path):
            return
        for name, size in (("memory.min", least_bytes), ("memory.low", low_bytes)):
            if self._protected.get(name) != size:
                with contextlib.suppress(OSError):
                    self.files.write(base.path / name, str(size))
                    self._protected[name] = size

    def protected_above(self) -> int | None:
        """What the groups above all VMs keep at most, under v2; None where nothing bounds that."""
        base = self.bases.get("memory")
        return None if base is None or base.version == 1 else cgrouptree.protected(base.path, self.files)

    def _weigh(self) -> None:
        base = self.bases.get("cpu")
        if base is not None and self._weight is not None:
            for one in writes(CpuWeight(self._weight), base.version):
                for name, text in one.values:
                    with contextlib.suppress(OSError):
                        self.files.write(base.path / name, text)

    # -- the end ---------------------------------------------------------------------------------

    def leave(self, uid: str) -> None:
        """Remove the group of a VM that has ended, as soon as its last process is gone."""
        group = self._groups.pop(uid, None) or Group(uid, self._places(uid), self.files)
        if group.paths and uid not in self._leaving and not self._try_remove(group):
            task = asyncio.get_running_loop().create_task(self._remove(group))
            self._leaving[uid] = task
            task.add_done_callback(lambda done: self._left(uid, done))

    def _left(self, uid: str, task: asyncio.Task[None]) -> None:
        if self._leaving.get(uid) is task:
            del self._leaving[uid]

    def leaving(self, uid: str) -> bool:
        return uid in self._leaving

    async def _remove(self, group: Group) -> None:
        for pause_s in _REMOVE_PAUSES_S:
            await asyncio.sleep(pause_s)
            if self._try_remove(group):
                return
        log.warning("the control group of %s is kept by processes %s", group.uid, sorted(group.pids()))

    def _try_remove(self, group: Group) -> bool:
        gone = group.try_remove()
        for path in group.paths:
            with contextlib.suppress(OSError):  # others are in it
                self.files.rmdir(path.parent)
        return gone

    def leftover(self) -> dict[str, Path]:
        """uid -> a directory, of every group there is, whoever made it."""
        found: dict[str, Path] = {}
        for base in dict.fromkeys(self.bases.values()):
            for path in self.files.children(base.path):
                found.setdefault(path.name, path)
        return found

    def sweep(self, keep: Iterable[str]) -> None:
        """Remove the groups of all others; what lives in one keeps it."""
        wanted = {*keep}
        for uid in self.leftover():
            if uid not in wanted:
                self._try_remove(Group(uid, self._places(uid), self.files))

    async def close(self) -> None:
        """Wait for what is leaving; the groups of VMs that run stay."""
        if self._leaving:
            await asyncio.wait(list(self._leaving.values()), timeout=sum(_REMOVE_PAUSES_S))
        for task in list(self._leaving.values()):
            task.cancel()


def _files_of(what: Write) -> str:
    return " or ".join(name for name, _ in what.values)


def _failed(what: str, error: OSError) -> Failed:
    return Failed(f"{what}: {error.strerror or error}", hint="see inn doctor for what this host allows")


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """The one place where what the kernel refuses becomes an error of ours."""
    try:
        yield
    except ProcessLookupError:
        raise
    except OSError as error:
        raise _failed(what, error) from error
