"""The balloon: memory that a driver in the guest takes from it, so that the host has it again (virtio 1.2,
section 5.5; QEMU docs/interop/virtio-balloon-stats.rst)."""

from __future__ import annotations

import os
from typing import Any, Final

from innkeeper.engine.memory import Balloon, GuestMemory, Ram
from innkeeper.engine.qemu import ram as ram_files
from innkeeper.engine.qemu.argv import BALLOON
from innkeeper.engine.qemu.qmp import Monitor
from innkeeper.errors import EngineError

# Asked of every VM every few seconds: one that hangs must not keep us.
DEADLINE_S: Final = 2.0
_PATH: Final = f"/machine/peripheral/{BALLOON}"
_UNKNOWN: Final = 2**64 - 1  # what QEMU says of a value that the driver left out


async def read(monitor: Monitor) -> Balloon:
    """Raises EngineError when there is none, or QEMU does not answer at once."""
    told = await monitor.execute("qom-get", {"path": _PATH, "property": "guest-stats"}, deadline_s=DEADLINE_S)
    now = await monitor.execute("query-balloon", deadline_s=DEADLINE_S)
    try:
        return Balloon(int(now["actual"]), _guest(told))
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"QEMU's answer about the balloon makes no sense: {error!r}") from None


def _guest(told: Any) -> GuestMemory | None:
    stats, told_at = told["stats"], int(told["last-update"])
    if not told_at:
        return None

    def value(name: str) -> int | None:
        found = stats.get(name)
        return None if found is None or found in (_UNKNOWN, -1) else int(found)

    return GuestMemory(
        told_at=float(told_at),
        available=value("stat-available-memory"),
        free=value("stat-free-memory"),
        total=value("stat-total-memory"),
        swapped_in=value("stat-swap-in"),
        major_faults=value("stat-major-faults"),
    )


async def poll_every(monitor: Monitor, seconds: int) -> None:
    """The guest is asked for its statistics that often; 0: not at all."""
    asked = {"path": _PATH, "property": "guest-stats-polling-interval", "value": seconds}
    await monitor.execute("qom-set", asked, deadline_s=DEADLINE_S)


async def resize(monitor: Monitor, left_bytes: int) -> None:
    await monitor.execute("balloon", {"value": left_bytes}, deadline_s=DEADLINE_S)


class Ballooned:
    """The part of a machine that is about its balloon."""

    _balloon_told_every_s: int | None = None

    @property
    def ram_private(self) -> bool:
        raise NotImplementedError

    @property
    def ram(self) -> Ram:
        raise NotImplementedError

    async def answering(self) -> Monitor:
        raise NotImplementedError

    async def balloon(self, *, every_s: int) -> Balloon:
        monitor = await self.answering()
        if every_s != self._balloon_told_every_s:
            await poll_every(monitor, every_s)
            self._balloon_told_every_s = every_s
        return await read(monitor)

    async def set_balloon(self, left_bytes: int) -> None:
        await resize(await self.answering(), left_bytes)

    async def hold_balloon(self) -> None:
        monitor = await self.answering()
        now = await monitor.execute("query-balloon", deadline_s=DEADLINE_S)
        await resize(monitor, int(now["actual"]))

    def ram_backing(self) -> dict[tuple[int, int], int]:
        found = (os.fstat(fd) for fd in self.ram.parts.values())
        return {(one.st_dev, one.st_ino): one.st_blocks * 512 for one in found}

    @property
    def reclaimable(self) -> bool:
        """The kernel takes nothing out of a sealed file, and what is private lies behind one."""
        return not self.ram_private and not ram_files.is_sealed(self.ram)
