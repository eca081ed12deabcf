"""The connection between a VM and its passt, kept alive while one QEMU takes over from another.

QEMU and passt talk over a byte stream of framed packets (QEMU's -netdev stream: length, then data). A
new QEMU gets the same socket, so passt notices nothing and no connection of the guest is lost; but it
must begin at the start of a frame. So passt is halted first and the old QEMU reads what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import struct
import termios
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from innkeeper.engine.qemu.process import program

# Frames of a few KB leave a receiving QEMU in microseconds; a guest that stands still never reads.
_DRAIN_TRIES: Final = 40
_DRAIN_PAUSE_S: Final = 0.0005

# Python has no wrapper; the number is the same on every architecture (added in Linux 5.6).
_SYS_PIDFD_GETFD: Final = 438


@dataclass
class Link:
    """QEMU's end of the socket (a duplicate of ours) and the process at the other end."""

    fd: int
    passt_pid: int

    async def hold(self) -> None:
        """Halt passt and let QEMU take what was sent already."""
        self._signal(signal.SIGSTOP)
        for _ in range(_DRAIN_TRIES):
            if self.waiting_bytes() == 0:
                return
            await asyncio.sleep(_DRAIN_PAUSE_S)

    def release(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.passt_pid, number)

    def waiting_bytes(self) -> int:
        """What passt has sent and QEMU has not read."""
        answer = fcntl.ioctl(self.fd, termios.FIONREAD, b"\0\0\0\0")
        count: int = struct.unpack("i", answer)[0]
        return count


def living_passts(pids: Sequence[int], proc: Path = Path("/proc")) -> tuple[int, ...]:
    """Those that are passt still: one that ended may have left its number to somebody else."""
    return tuple(pid for pid in pids if program(pid, proc).startswith("passt"))


def links_of(pid: int, passt_pids: Sequence[int], proc: Path = Path("/proc")) -> list[Link]:
    """The links of a QEMU that an earlier daemon started: its ends, duplicated out of it.

    Empty when the kernel does not let us (pidfd_getfd(2) needs ptrace rights): then a fork of that VM
    gives it a new passt, and its connections are cut.
    """
    numbers = _network_ends(proc / str(pid) / "cmdline")
    if len(numbers) != len(passt_pids):
        return []
    links: list[Link] = []
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return []
    try:
        for number, passt in zip(numbers, passt_pids, strict=True):
            links.append(Link(_pidfd_getfd(pidfd, number), passt))
    except OSError:
        for link in links:
            link.close()
        return []
    finally:
        os.close(pidfd)
    return links


def _network_ends(cmdline: Path) -> list[int]:
    """Descriptor numbers of `-netdev stream` in QEMU's own command line."""
    try:
        words = cmdline.read_bytes().split(b"\0")
    except OSError:
        return []
    found = []
    for option, value in pairwise(words):
        if option == b"-netdev":
            address = json.loads(value).get("addr", {})
            if address.get("type") == "fd":
                found.append(int(address["str"]))
    return found


def _pidfd_getfd(pidfd: int, number: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return fd
