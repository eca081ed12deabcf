"""Files of /proc that are read again and again: kept open where there are descriptors to spare.

A descriptor of /proc/PID/... belongs to that very process: when it is gone reading fails (ESRCH), and can
never reach another one that got the same number.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import threading
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_READ_BYTES: Final = 4096
# Of what this process may have open; the rest is for VMs, clients and files.
_SHARE: Final = 0.5


class Budget:
    """How many descriptors may be kept open for reading /proc."""

    def __init__(self, limit: int | None = None) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.limit = int(soft * _SHARE) if limit is None else limit
        self.held = 0


class ProcFile:
    """One file. Raises OSError when made or read after its process has gone."""

    __slots__ = ("_budget", "_fd", "_path")

    def __init__(self, path: str, budget: Budget) -> None:
        self._path, self._budget, self._fd = path, budget, -1
        if budget.held < budget.limit:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            budget.held += 1

    def read(self) -> bytes:
        if self._fd >= 0:
            return os.pread(self._fd, _READ_BYTES, 0)
        return read_whole(self._path)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._budget.held -= 1


def read_whole(path: str) -> bytes:
    """A file of any length, opened for this once."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


async def aside(work: Callable[[], T], deadline_s: float) -> T:
    """Run what the kernel may take long for beside the event loop. Raises TimeoutError; the thread that is
    stuck then is left behind, and holds up neither us nor our end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if not done.done():
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = (work(), None)
        except BaseException as error:
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="slow-read", daemon=True).start()
    # Not wait_for: before Python 3.12 it loses a cancellation that comes with the answer.
    async with asyncio.timeout(deadline_s):
        return await done
