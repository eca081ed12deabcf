"""Hosts with control groups, as directories: cgroup v1, v2 or both, with the kernel's rules and refusals.

What cgroupfs does by itself is done here: a new group has its files, one with processes or children is not
removed, a group of v2 whose children are controlled takes no process, limits that contradict each other are
invalid.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from innkeeper.drivers.cgroup import Cgroups

V2_FILES = {
    "cpu": {"cpu.weight": "100", "cpu.max": "max 100000", "cpu.max.burst": "0"},
    "memory": {
        "memory.min": "0",
        "memory.low": "0",
        "memory.high": "max",
        "memory.max": "max",
        "memory.swap.max": "max",
        "memory.current": "4096",
        "memory.swap.current": "0",
    },
    "io": {"io.weight": "default 100"},
}
V1_FILES = {
    "cpu": {
        "cpu.shares": "1024",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "-1",
        "cpu.cfs_burst_us": "0",
        "cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n",
    },
    "cpuacct": {"cpuacct.usage": "1500000000"},
    "memory": {
        "memory.limit_in_bytes": "-1",
        "memory.memsw.limit_in_bytes": "-1",
        "memory.soft_limit_in_bytes": "-1",
        "memory.usage_in_bytes": "4096",
        "memory.swappiness": "60",
        "memory.stat": "cache 0\nrss 4096\nswap 0\n",
    },
    "blkio": {"blkio.bfq.weight": "100"},
}
_PROCS, _SUBTREE, _CONTROLLERS = "cgroup.procs", "cgroup.subtree_control", "cgroup.controllers"


class FakeHost:
    """`files` is the seam's other side; `fail["cpu.max"] = errno.EIO` refuses the next writes of that name,
    or the making of a directory of that name (`mkdir`, for any)."""

    def __init__(
        self,
        root: Path,
        *,
        v1: Iterable[str] = (),
        v2: Iterable[str] = (),
        own: str = "/",
    ) -> None:
        self.root = root
        self.v2, self.top = tuple(v2), root / "sys/fs/cgroup"
        self.fail: dict[str, int] = {}
        self.writes: list[str] = []
        mounts, groups = [], []
        for number, names in enumerate(v1, 1):
            where = f"/sys/fs/cgroup/{names}"
            mounts.append(f"cgroup {where} cgroup rw,nosuid,{names} 0 0")
            groups.append(f"{number}:{names}:{own}")
            self._fill(root / where[1:], top=True)
            self._reach(root / where[1:], own)
        if self.v2 or not v1:
            where = "/sys/fs/cgroup/unified" if v1 else "/sys/fs/cgroup"
            mounts.append(f"cgroup2 {where} cgroup2 rw 0 0")
            groups.append(f"0::{own}")
            self.top = root / where[1:]
            self._fill(self.top, top=True)
            self._reach(self.top, own)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/mounts").write_text("".join(f"{line}\n" for line in mounts))
        (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in groups))

    def _reach(self, top: Path, own: str) -> None:
        for name in own.strip("/").split("/"):
            if name:
                if self._is_v2(top):
                    (top / _SUBTREE).write_text(" ".join(self.v2))
                top = top / name
                self._fill(top)
        (top / _PROCS).write_text(f"{os.getpid()}\n")

    def detect(self, state: str = "/var/lib/innkeeper") -> Cgroups:
        return Cgroups.detect(Path(state), self.root, self)

    def process(self, pid: int, *lines: str) -> None:
        folder = self.root / f"proc/{pid}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    # -- the seam -------------------------------------------------------------------------------------

    def read(self, path: Path) -> str:
        return path.read_text()

    def write(self, path: Path, text: str) -> None:
        self._refuse(path.name)
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self.writes.append(f"{path.name}={text}")
        if path.name == _PROCS:
            self._enter(path, text)
        elif path.name == _SUBTREE:
            self._pass_on(path.parent, text.removeprefix("+"))
        else:
            self._check(path, text)
            path.write_text(text)

    def mkdir(self, path: Path) -> None:
        self._refuse("mkdir")
        path.mkdir()
        self._fill(path)

    def rmdir(self, path: Path) -> None:
        if not path.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if (path / _PROCS).read_text().strip() or list(self.children(path)):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        self.destroy(path)

    def is_dir(self, path: Path) -> bool:
        return path.is_dir()

    def children(self, path: Path) -> Iterable[Path]:
        return [one for one in path.iterdir() if one.is_dir()] if path.is_dir() else []

    # -- the kernel -----------------------------------------------------------------------------------

    def destroy(self, path: Path) -> None:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()

    def end(self, pid: int) -> None:
        """The process is gone."""
        for file in self.root.glob(f"sys/fs/cgroup/**/{_PROCS}"):
            words = file.read_text().split()
            if str(pid) in words:
                words.remove(str(pid))
                file.write_text("".join(f"{word}\n" for word in words))

    def _refuse(self, name: str) -> None:
        if name in self.fail:
            number = self.fail[name]
            raise OSError(number, os.strerror(number), name)

    def _is_v2(self, path: Path) -> bool:
        return path.is_relative_to(self.top) and (self.top / _SUBTREE).exists()

    def _fill(self, path: Path, *, top: bool = False) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / _PROCS).write_text("")
        files: dict[str, str] = {}
        if path.is_relative_to(self.top) and (top or self._is_v2(path)) and not self._v1_name(path):
            has = self.v2 if top else (path.parent / _SUBTREE).read_text().split()
            (path / _CONTROLLERS).write_text(" ".join(has))
            (path / _SUBTREE).write_text("")
            files = {"cpu.stat": "usage_usec 2500000\nnr_throttled 0\nthrottled_usec 0\n"}
            for name in () if top else has:  # the kernel's own group is bounded by nothing
                files |= V2_FILES.get(name, {})
        else:
            for name in self._v1_name(path).split(","):
                files |= V1_FILES.get(name, {})
        for name, text in files.items():
            (path / name).write_text(text)

    def _v1_name(self, path: Path) -> str:
        first = path.relative_to(self.root / "sys/fs/cgroup").parts[:1]
        return first[0] if first and first[0].split(",")[0] in V1_FILES else ""

    def _enter(self, path: Path, text: str) -> None:
        control = path.parent / _SUBTREE
        if path.parent != self.top and control.exists() and control.read_text().strip():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        hierarchy = path.relative_to(self.root / "sys/fs/cgroup").parts[0]
        for file in self.root.glob(f"sys/fs/cgroup/**/{_PROCS}"):
            same = file.relative_to(self.root / "sys/fs/cgroup").parts[0] == hierarchy
            if same or self._is_v2(path):
                left = [word for word in file.read_text().split() if word != text]
                file.write_text("".join(f"{word}\n" for word in left))
        path.write_text(f"{path.read_text()}{text}\n")

    def _pass_on(self, group: Path, name: str) -> None:
        if name not in (group / _CONTROLLERS).read_text().split():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        if group != self.top and (group / _PROCS).read_text().strip():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(group))
        control = group / _SUBTREE
        control.write_text(f"{control.read_text()} {name}")
        for child in self.children(group):
            (child / _CONTROLLERS).write_text(f"{(child / _CONTROLLERS).read_text()} {name}")
            for file, text in V2_FILES.get(name, {}).items():
                (child / file).write_text(text)

    def _check(self, path: Path, text: str) -> None:
        """v1: memory is never more than memory and swap together."""
        limits = {"memory.limit_in_bytes": 0, "memory.memsw.limit_in_bytes": 1}
        if path.name in limits:
            both = [_size((path.parent / name).read_text()) for name in limits]
            both[limits[path.name]] = _size(text)
            if both[0] > both[1]:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))


def _size(text: str) -> float:
    return float("inf") if text.strip() == "-1" else int(text)
