"""Device state to a file and back: QEMU's own migration stream, without the RAM.

`x-ignore-shared` leaves out RAM that lies in a shared memory file, so the stream is some 100 KB
whatever the size of the guest (docs/devel/migration; measured 10 ms). Both ends get the file as a
descriptor: QEMU needs no right to open anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Any, Final

from innkeeper.engine.base import RunState
from innkeeper.engine.qemu import commands
from innkeeper.engine.qemu.qmp import Monitor
from innkeeper.errors import EngineError, NoCapacity

DEADLINE_S: Final = 30.0
# The stream takes milliseconds; asking more often than this gains nothing.
_POLL_S: Final = 0.0005
# Copying RAM: 10 GiB/s is more than memory gives; a guest that dirties faster than that never ends.
_UNLIMITED_BYTES_PER_S: Final = 10 << 30
MOVE_DEADLINE_S: Final = 120.0
CANCEL_DEADLINE_S: Final = 5.0


async def save(monitor: Monitor, path: Path) -> None:
    """Write the device state of a stopped VM to a new file. Its disks are inactive afterwards, until
    it is resumed. Raises NoCapacity when the file system is full, EngineError for the rest."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        await monitor.execute("migrate-set-capabilities", _capabilities(without_ram=True))
        await _pass(monitor, fd, "state-out")
        await monitor.execute("migrate", {"uri": "fd:state-out"})
        try:
            await _reached(monitor, "completed")
        except EngineError:
            free = os.statvfs(path.parent)
            if free.f_bavail * free.f_frsize < 1 << 20:
                raise NoCapacity(f"No space left for the device state under {path.parent}") from None
            raise
    finally:
        os.close(fd)


async def load(monitor: Monitor, path: Path) -> None:
    """Restore device state into a VM that waits in `-incoming defer`; its vCPUs do not run yet."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await monitor.execute("migrate-set-capabilities", _capabilities(without_ram=True))
        await _pass(monitor, fd, "state-in")
        await monitor.execute("migrate-incoming", {"uri": "fd:state-in"})
    finally:
        os.close(fd)
    await _reached(monitor, "completed")


def _capabilities(*, without_ram: bool) -> dict[str, Any]:
    """Set every time: a QEMU remembers what an earlier move needed."""
    return {"capabilities": [{"capability": "x-ignore-shared", "state": without_ram}]}


async def _pass(monitor: Monitor, fd: int, name: str) -> None:
    await monitor.send_descriptor(fd)
    await monitor.execute("getfd", {"fdname": name})


async def _reached(monitor: Monitor, wanted: str, deadline_s: float = DEADLINE_S) -> None:
    try:
        async with asyncio.timeout(deadline_s):
            while (answer := await monitor.execute("query-migrate")).get("status") != wanted:
                if answer.get("status") in ("failed", "cancelled", "completed"):
                    why = answer.get("error-desc", answer["status"])
                    raise EngineError(f"QEMU could not hand over the VM's state: {why}")
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise EngineError(f"QEMU did not hand over the VM's state within {deadline_s:g} s") from None


# Of query-migrate, at either end: what has begun and is not over (QAPI MigrationStatus).
_UNDER_WAY: Final = frozenset(
    {"setup", "active", "pre-switchover", "device", "wait-unplug", "cancelling", "postcopy-active"}
)


async def abandon(monitor: Monitor) -> None:
    """Give up handing over the state of this VM, if that has begun; what is complete stays so."""
    if await _under_way(monitor):
        await monitor.execute("migrate_cancel")
        await _at_rest(monitor)


async def arrived(monitor: Monitor) -> bool:
    """Whether a VM that was started to take over has the state; waits for one that is on its way."""
    await _at_rest(monitor)
    return await commands.query_status(monitor) is not RunState.INCOMING


async def _at_rest(monitor: Monitor) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if not await _under_way(monitor):
                    return
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise EngineError(f"QEMU did not finish or give up a hand-over within {DEADLINE_S:g} s") from None


async def _under_way(monitor: Monitor) -> bool:
    return (await monitor.execute("query-migrate")).get("status") in _UNDER_WAY


async def move(source: Monitor, target: Monitor) -> None:
    """Live migration between two processes on this host, RAM included, over a socket pair.

    On failure the source runs on, or can be made to. The VM pauses for the last round only
    (docs/devel/migration); the target waits to be resumed.
    """
    first, second = socket.socketpair()
    try:
        for monitor in (source, target):
            await monitor.execute("migrate-set-capabilities", _capabilities(without_ram=False))
        await source.execute("migrate-set-parameters", {"max-bandwidth": _UNLIMITED_BYTES_PER_S})
        await _pass(target, second.fileno(), "ram-in")
        await target.execute("migrate-incoming", {"uri": "fd:ram-in"})
        await _pass(source, first.fileno(), "ram-out")
        await source.execute("migrate", {"uri": "fd:ram-out"})
    finally:
        first.close()
        second.close()
    try:
        await _reached(source, "completed", MOVE_DEADLINE_S)
        await _reached(target, "completed", DEADLINE_S)
    except BaseException:
        with contextlib.suppress(EngineError):
            await source.execute("migrate_cancel")
            await _over(source)
        raise


async def _over(monitor: Monitor) -> None:
    """Until a migration that was cancelled has let go of the VM: before that, nothing else may be asked."""
    for _ in range(int(CANCEL_DEADLINE_S / _POLL_S)):
        if (await monitor.execute("query-migrate")).get("status") in ("cancelled", "failed", "completed"):
            return
        await asyncio.sleep(_POLL_S)
