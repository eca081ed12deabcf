"""QEMU as a process: waiting for its end without polling, finding those an earlier daemon left.

A VM outlives its daemon, so nothing here depends on being its parent: ends are seen through a pidfd
(pidfd_open(2)), and a running VM is recognised by `-uuid UID` in its own command line, which is
there from its first instruction to its last. No pid file can be stale or missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Final

# SIGTERM lets QEMU write back what it holds (disk caches); one that does not react is hung.
TERM_GRACE_S: Final = 1.0
KILL_GRACE_S: Final = 5.0


def scan(proc: Path = Path("/proc")) -> dict[str, list[int]]:
    """uid -> pids of every QEMU with a -uuid on this host that we may look at. The oldest first: there are
    two while one takes over from another."""
    found: dict[str, list[tuple[int, int]]] = {}
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"qemu" in os.path.basename(words[0]) and b"-uuid" in words[:-1]:
                uid = words[words.index(b"-uuid") + 1].decode(errors="replace")
                found.setdefault(uid, []).append((_started_at(entry), int(entry.name)))
        except OSError:
            continue
    return {uid: [pid for _, pid in sorted(ages)] for uid, ages in found.items()}


def program(pid: int, proc: Path = Path("/proc")) -> str:
    """What it was started as, without the directory; empty when it has ended."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return os.path.basename(words[0]).decode(errors="replace")


def _started_at(entry: Path) -> int:
    """In clock ticks since boot: field 22 of proc_pid_stat(5), counted after the name in parentheses."""
    return int((entry / "stat").read_bytes().rpartition(b") ")[2].split()[19])


class Process:
    """A process we watch; ours or adopted. `ended` is set when it is gone."""

    def __init__(self, pid: int, *, child: bool) -> None:
        self.pid = pid
        self.status: int | None = None
        self.ended = asyncio.Event()
        self._child = child
        self._loop = asyncio.get_running_loop()
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = -1
            self.ended.set()
            return
        self._loop.add_reader(self._pidfd, self._on_end)

    def _on_end(self) -> None:
        if self._child:
            with contextlib.suppress(ChildProcessError):
                info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
                if info is not None:
                    killed = info.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
                    self.status = -info.si_status if killed else info.si_status
        self._close()
        self.ended.set()

    def _close(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def signal(self, number: int) -> None:
        """Through the pidfd: it can never hit another process that got the same pid."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def end(self) -> None:
        """End it: politely, then not. Returns when it is gone."""
        for number, grace_s in ((signal.SIGTERM, TERM_GRACE_S), (signal.SIGKILL, KILL_GRACE_S)):
            self.signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), grace_s)
                return

    def detach(self) -> None:
        """Stop watching; it runs on."""
        self._close()
