"""Limits of disks: QEMU's throttling at the back end of each disk's device (QEMU docs/throttle.txt).

`block_set_io_throttle` needs no node in the block graph: a disk without limits has nothing in its way, and
whatever changes the graph (snapshots, jobs, layers) knows nothing of limits. A `throttle` filter node would
have to be there from the start, or every change of the graph would have to mind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from innkeeper.engine.qemu.counters import disk_of
from innkeeper.engine.qemu.qmp import Monitor
from innkeeper.engine.throttle import Throttle
from innkeeper.errors import EngineError

_KINDS: Final = {"bytes": "bps", "ops": "iops"}
_DIRECTIONS: Final = {"total": "", "read": "_rd", "write": "_wr"}
_PARTS: Final = {"": "", "_burst": "_max", "_burst_length": "_max_length"}
# Our names to those of BlockIOThrottle and BlockDeviceInfo (qapi/block-core.json).
NAMES: Final[dict[str, str]] = {
    f"{direction}_{kind}{part}": f"{_KINDS[kind]}{_DIRECTIONS[direction]}{_PARTS[part]}"
    for kind in _KINDS
    for direction in _DIRECTIONS
    for part in _PARTS
} | {"op_size": "iops_size"}
# Those that must be sent always, zero for none.
_RATES: Final = tuple(f"{kind}{direction}" for kind in _KINDS.values() for direction in _DIRECTIONS.values())


def arguments(device: str, throttle: Throttle | None) -> dict[str, Any]:
    """Of block_set_io_throttle. What is not named there is none (QEMU begins from an empty configuration)."""
    given = {NAMES[name]: value for name, value in throttle.limits.items()} if throttle else {}
    group = {"group": throttle.group} if throttle else {}
    return {"id": device, **dict.fromkeys(_RATES, 0), **given, **group}


def in_force(inserted: Mapping[str, Any]) -> Throttle | None:
    """From BlockDeviceInfo, which names a group only where limits are kept."""
    group = inserted.get("group")
    if not group:
        return None
    found = {ours: int(inserted[theirs]) for ours, theirs in NAMES.items() if inserted.get(theirs)}
    return Throttle(str(group), found)


async def read(monitor: Monitor) -> dict[str, Throttle | None]:
    return {name: in_force(one.get("inserted") or {}) for name, one in (await _devices(monitor)).items()}


async def put(monitor: Monitor, disk: str, throttle: Throttle | None) -> None:
    device = (await _devices(monitor)).get(disk)
    if device is None:
        raise EngineError(f"QEMU has no disk {disk}")
    await monitor.execute("block_set_io_throttle", arguments(str(device["qdev"]), throttle))


async def _devices(monitor: Monitor) -> dict[str, Mapping[str, Any]]:
    """What query-block says of each disk. By a virtio disk's own id QEMU does not find it (its back end is a
    device inside of that one), only by the path that is told here."""
    answer = await monitor.execute("query-block")
    try:
        return {name: one for one in answer if (name := disk_of(one))}
    except (AttributeError, TypeError):
        raise EngineError("QEMU's answer about its disks makes no sense") from None


class DiskThrottles:
    """The part of a machine that is about its disks' limits."""

    async def answering(self) -> Monitor:
        raise NotImplementedError

    async def throttles(self) -> dict[str, Throttle | None]:
        return await read(await self.answering())

    async def throttle(self, disk: str, limits: Throttle | None) -> None:
        await put(await self.answering(), disk, limits)
