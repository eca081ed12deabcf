"""What a daemon and its VMs leave in the world: processes, files, descriptors, taps, cgroups, log lines."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
from pathlib import Path

from innkeeper.paths import Paths

_COMPLAINT = re.compile(rb"Traceback|traceback=| ERROR | CRITICAL |never retrieved|never awaited")


def processes(mark: str) -> list[int]:
    """Those that have `mark` (NAME=VALUE) in their environment and are not dead yet."""
    wanted, found = mark.encode(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def qemu_uid(pid: int) -> str:
    """The instance whose QEMU it is; empty for every other process."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    if b"qemu" not in os.path.basename(words[0]) or b"-uuid" not in words[:-1]:
        return ""
    return words[words.index(b"-uuid") + 1].decode(errors="replace")


def kill(pid: int) -> None:
    signal_if_there(pid, signal.SIGKILL)


def signal_if_there(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def descriptors(pid: int) -> int:
    return len(descriptor_names(pid))


def descriptor_names(pid: int) -> list[str]:
    """Without those by which it reads the counters of living processes: they come and go with threads."""
    names = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/{pid}/fd/{entry}")
            process = re.match(r"/proc/\d+(?=/)", name)
            if not process or not os.path.exists(process[0]):
                names.append(name)
    return sorted(names)


def leftovers(paths: Paths) -> list[str]:
    """Files of instances and of running VMs, and an API socket that nobody serves any more."""
    found = _entries(paths.instances)
    for path in paths.run.iterdir() if paths.run.exists() else ():
        if path.is_dir():
            found += _entries(path)
        elif path.name != "start.lock":
            found.append(str(path))
    return found


def instance_files(paths: Paths) -> set[str]:
    return {*_entries(paths.instances), *_entries(paths.machines)}


def _entries(directory: Path) -> list[str]:
    return [str(path) for path in directory.iterdir()] if directory.exists() else []


def host_objects() -> set[str]:
    """Network devices of ours: none yet, and so none may appear."""
    return {name for name in os.listdir("/sys/class/net") if name.startswith(("inn", "ink"))}


def control_groups(state: Path) -> list[str]:
    """Those of the VMs of one daemon, in all hierarchies; other daemons of the host have their own."""
    name = f"innkeeper-{hashlib.sha256(str(state).encode()).hexdigest()[:12]}"
    found = []
    for path, directories, _ in os.walk("/sys/fs/cgroup"):
        if os.path.basename(path) == name:
            found += [f"{path}/{one}" for one in directories]
            directories.clear()
    return sorted(found)


def complaints(log: Path, start: int = 0) -> list[str]:
    """Lines of a daemon's log that tell of a bug."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(start)
        return [line.decode(errors="replace").strip()[:2000] for line in file if _COMPLAINT.search(line)]
