"""Reading one process: its counters often, where its memory lies seldom."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from innkeeper.agent import sysfs
from innkeeper.agent.sampling import cgroups, proc
from innkeeper.agent.sampling.accounts import Storage, parse_io
from innkeeper.agent.sampling.files import Budget, ProcFile, read_whole
from innkeeper.agent.sampling.rates import Sample, ThreadSample

PROC: Final = Path("/proc")
_TUN_DEVICE: Final = "/dev/net/tun"
# A process is moved to a cgroup of its own soon after its start, and perhaps later to another.
GROUPS_EVERY_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the memory of a process lies, and where its vCPUs ran last."""

    nodes: Mapping[int, int]  # bytes of each node
    vcpu_cpus: tuple[int, ...]


class _ThreadFile:
    """One thread's account: exact from schedstat, else in clock ticks from its stat. With `delays` the kernel
    counts how long it waits for block devices as well."""

    __slots__ = ("_delays", "_file", "_ticks", "thread")

    def __init__(self, folder: str, thread: proc.Thread, budget: Budget, *, delays: bool = False) -> None:
        self.thread = thread
        self._ticks = False
        task = f"{folder}/task/{thread.tid}"
        self._delays = f"{task}/stat" if delays and thread.kind == "vcpu" else ""
        try:
            self._file = ProcFile(f"{task}/schedstat", budget)
            self._ticks = thread.kind == "emulator" and proc.parse_schedstat(self._file.read()) is None
        except FileNotFoundError:
            self._ticks = True
            self._file = ProcFile(f"{task}/stat", budget)
            return
        if self._ticks:
            self._file.close()
            self._file = ProcFile(f"{task}/stat", budget)

    def read(self) -> ThreadSample:
        data = self._file.read()
        if self._ticks:
            return ThreadSample(self.thread, proc.parse_stat(data).cpu_s, None)
        told = proc.parse_schedstat(data)
        if told is None:  # it has not run yet
            return ThreadSample(self.thread, 0.0, 0.0)
        blocked = proc.parse_stat(read_whole(self._delays)).blocked_s if self._delays else None
        return ThreadSample(self.thread, told.run_ns / 1e9, (told.wait_ns or 0) / 1e9, blocked)

    def close(self) -> None:
        self._file.close()


class ProcessReader:
    """Raises OSError when the process is not there. Close it when the process has gone."""

    def __init__(self, pid: int, budget: Budget, root: Path = PROC) -> None:
        self.pid = pid
        self._root, self._folder = root, f"{root}/{pid}"
        self._budget = budget
        self._threads: list[_ThreadFile] = []
        self._files: list[ProcFile] = []
        self._told: tuple[tuple[int, ...], Mapping[str, int] | None] = ((), None)
        self._count = 0
        self._groups, self._groups_at = b"", -GROUPS_EVERY_S
        self._accounts = cgroups.Accounts()
        self._delays = sysfs.read_text(root / "sys/kernel/task_delayacct") == "1"
        try:
            self._stat = self._keep("stat")
            self._statm = self._keep("statm")
            self._started = proc.parse_stat(self._stat.read()).started_ticks
            self.refresh()
        except BaseException:
            self.close()
            raise

    def _keep(self, name: str) -> ProcFile:
        file = ProcFile(f"{self._folder}/{name}", self._budget)
        self._files.append(file)
        return file

    def told(self, vcpus: Iterable[int], iothreads: Mapping[str, int]) -> None:
        """What QEMU says its threads are for."""
        self._told = (tuple(vcpus), dict(iothreads))
        self.refresh()

    def refresh(self) -> None:
        """Look at the list of threads again: vCPUs come and go."""
        names = {}
        for tid in map(int, os.listdir(f"{self._folder}/task")):
            with contextlib.suppress(OSError):
                names[tid] = read_whole(f"{self._folder}/task/{tid}/comm").decode(errors="replace").strip()
        wanted = proc.roles(names, self.pid, *self._told)
        kept = {one.thread: one for one in self._threads}
        for thread, file in list(kept.items()):
            if thread not in wanted:
                file.close()
                del kept[thread]
        self._threads = list(kept.values())
        for thread in wanted:
            if thread not in kept:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                    self._threads.append(self._opened(thread))
        self._threads.sort(key=lambda one: wanted.index(one.thread))

    def _opened(self, thread: proc.Thread) -> _ThreadFile:
        return _ThreadFile(self._folder, thread, self._budget, delays=self._delays)

    def sample(self, at: float) -> Sample:
        stat = proc.parse_stat(self._stat.read())
        if stat.started_ticks != self._started:
            raise ProcessLookupError(f"process {self.pid} is another one now")
        if self._count and stat.threads != self._count:
            self.refresh()
        self._count = stat.threads
        self._look_at_groups(at)
        return Sample(
            at=at,
            pid=self.pid,
            started_ticks=stat.started_ticks,
            cpu_s=stat.cpu_s,
            minor_faults=stat.minor_faults,
            major_faults=stat.major_faults,
            rss_bytes=proc.parse_statm(self._statm.read()),
            threads=self._read_threads(),
            throttled_s=self._accounts.throttled_s(),
            pressure=self._accounts.pressures(),
            refaults=self._accounts.refaults(),
            storage=self._storage(),
        )

    def _read_threads(self) -> tuple[ThreadSample, ...]:
        found = []
        for one in list(self._threads):
            try:
                found.append(one.read())
            except (FileNotFoundError, ProcessLookupError):  # unplugged; the process is there, or stat failed
                one.close()
                self._threads.remove(one)
        return tuple(found)

    def _look_at_groups(self, at: float) -> None:
        if at - self._groups_at < GROUPS_EVERY_S:
            return
        self._groups_at = at
        told = cgroups.membership(self._root, self.pid)
        if told != self._groups:
            self._groups, self._accounts = told, cgroups.accounts_of(self._root, told)

    def _storage(self) -> Storage | None:
        """None where the kernel does not count it, or not for us: it takes the right to trace the process."""
        try:
            return parse_io(read_whole(f"{self._folder}/io"))
        except (FileNotFoundError, PermissionError):
            return None

    def footprint(self) -> proc.Footprint:
        """Walks all its page tables: a millisecond for small VMs, much longer for large ones."""
        return proc.parse_footprint(read_whole(f"{self._folder}/smaps_rollup"))

    def placement(self) -> Placement:
        """Walks all its page tables, too."""
        cpus = []
        for one in self._threads:
            if one.thread.kind == "vcpu":
                with contextlib.suppress(OSError):
                    stat = read_whole(f"{self._folder}/task/{one.thread.tid}/stat")
                    cpus.append(proc.parse_stat(stat).processor)
        return Placement(proc.parse_numa_maps(read_whole(f"{self._folder}/numa_maps")), tuple(cpus))

    def taps(self) -> tuple[str, ...]:
        """Names of the host's interfaces whose other end this process has open."""
        found = []
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"{self._folder}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"{self._folder}/fd/{fd}") == _TUN_DEVICE:
                        for line in read_whole(f"{self._folder}/fdinfo/{fd}").decode().splitlines():
                            if line.startswith("iff:"):
                                found.append(line.split()[1])
        return tuple(dict.fromkeys(found))

    def close(self) -> None:
        for one in self._threads:
            one.close()
        for file in self._files:
            file.close()
        self._threads, self._files = [], []
