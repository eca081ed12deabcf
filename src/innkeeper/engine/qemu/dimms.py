"""Memory modules that are plugged into a running VM (docs: QEMU docs/memory-hotplug.txt).

Each has a memory file of its own, shared like the rest of the RAM: forks and snapshots have it, too.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Final

from innkeeper.engine.base import LaunchPlan
from innkeeper.engine.memory import DimmPlan, Ram, RamPlan
from innkeeper.engine.qemu import ram
from innkeeper.engine.qemu.memory_argv import backend_members
from innkeeper.engine.qemu.qmp import Monitor
from innkeeper.errors import EngineError

# _OST of ACPI 6.4, 6.3.5: source 3 is an ejection request; these say that it is under way, or succeeded.
_EJECT: Final = 3
_NOT_REFUSED: Final = frozenset({0, 0x84})


async def present(monitor: Monitor) -> list[DimmPlan]:
    """By slot. What somebody else plugged is not ours to look at."""
    answer = await monitor.execute("query-memory-devices")
    found = [one["data"] for one in answer if one["type"] == "dimm"]
    return sorted(
        (
            DimmPlan(int(one["slot"]), int(one["size"]), int(one["addr"]), int(one.get("node", -1)))
            for one in found
            if one.get("id") == f"dimm{one['slot']}"
        ),
        key=lambda dimm: dimm.slot,
    )


async def plug_new(monitor: Monitor, dimm: DimmPlan, plan: LaunchPlan) -> int:
    """With a new memory file, which is returned. On failure nothing is left of it."""
    piece = plan.piece_of(dimm)
    fd = ram.create_piece(piece, plan.memory.page_bytes)
    try:
        await drop(monitor, piece.id)  # what a daemon that was killed in between left
        await _plug(monitor, dimm, piece, fd, replace(plan, ram_private=False))
    except BaseException:
        os.close(fd)
        raise
    return fd


async def _plug(monitor: Monitor, dimm: DimmPlan, piece: RamPlan, fd: int, plan: LaunchPlan) -> None:
    await monitor.send_descriptor(fd)
    added = await monitor.execute("add-fd", {"opaque": piece.id})
    try:
        path = f"/proc/self/fd/{added['fd']}"
        backend = {"qom-type": "memory-backend-file", "mem-path": path, "share": True}
        await monitor.execute("object-add", backend_members(plan, piece, backend))
        try:
            device = {"driver": "pc-dimm", "id": dimm.id, "memdev": piece.id, "slot": dimm.slot}
            node = {"node": dimm.node} if dimm.node >= 0 else {}
            await monitor.execute("device_add", {**device, **node})
        except BaseException:
            with contextlib.suppress(EngineError):
                await monitor.execute("object-del", {"id": piece.id})
            raise
    finally:
        with contextlib.suppress(EngineError):  # QEMU has opened it anew
            await monitor.execute("remove-fd", {"fdset-id": added["fdset-id"], "fd": added["fd"]})


async def ask_back(monitor: Monitor, dimm: DimmPlan) -> None:
    """Ask the guest to give it up; `present` tells when it has. May be asked again."""
    try:
        await monitor.execute("device_del", {"id": dimm.id})
    except EngineError as error:
        said = error.message
        if "not found" not in said and "in the process of unplug" not in said:
            raise


async def drop(monitor: Monitor, piece: str) -> None:
    """Of one that was given up: its memory file goes."""
    with contextlib.suppress(EngineError):
        await monitor.execute("object-del", {"id": piece})


async def refused(monitor: Monitor, dimm: DimmPlan) -> bool:
    """Whether the guest said that it does not give it up."""
    for one in await monitor.execute("query-acpi-ospm-status"):
        if one.get("slot-type") == "DIMM" and str(one.get("slot")) == str(dimm.slot):
            return one.get("source") == _EJECT and one.get("status") not in _NOT_REFUSED
    return False


class DimmSlots:
    """The part of a machine that is about its modules; the rest of it has these."""

    _ram: Ram | None

    @property
    def ram_private(self) -> bool:
        raise NotImplementedError

    @property
    def ram(self) -> Ram:
        raise NotImplementedError

    async def answering(self) -> Monitor:
        raise NotImplementedError

    async def dimms(self) -> list[DimmPlan]:
        """The memory files of those that went are let go of."""
        monitor = await self.answering()
        found = await present(monitor)
        gone = {name for name in self.ram.parts if name.startswith("ram-")} - {one.ram for one in found}
        if not gone:
            return found
        if not self.ram_private:
            # QEMU keeps the descriptors it was started with. A private view's file is for its siblings, too.
            ram.give_back(self.ram, gone)
        self._ram = self.ram.without(gone)
        for name in gone:
            await drop(monitor, name)
        return found

    async def plug_dimm(self, dimm: DimmPlan, plan: LaunchPlan) -> None:
        fd = await plug_new(await self.answering(), dimm, plan)
        self._ram = Ram({**self.ram.parts, dimm.ram: fd})

    async def unplug_dimm(self, dimm: DimmPlan) -> None:
        await ask_back(await self.answering(), dimm)

    async def keeps_dimm(self, dimm: DimmPlan) -> bool:
        return await refused(await self.answering(), dimm)
