"""Places for vCPUs, as QEMU counts them (QAPI query-hotpluggable-cpus; docs/system/cpu-hotplug)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from innkeeper.engine.base import VcpuSlot
from innkeeper.engine.qemu.qmp import Monitor
from innkeeper.errors import EngineError, Unsupported

# The order in which the machine numbers its places (hw/i386/x86.c, x86_possible_cpu_arch_ids).
_ORDER: Final = ("socket-id", "die-id", "cluster-id", "core-id", "thread-id")


@dataclass(frozen=True)
class Place:
    """`path` is the vCPU's in QEMU's object tree; empty: nobody is there."""

    index: int
    kind: str
    properties: dict[str, Any]
    path: str


async def places(monitor: Monitor) -> list[Place]:
    """All places, by number. A machine without places to plug into has those of its start, all taken."""
    try:
        answer = await monitor.execute("query-hotpluggable-cpus")
    except EngineError as error:
        if not any(words in error.message for words in ("not support", "not enabled")):
            raise
        count = len(await monitor.execute("query-cpus-fast"))
        return [Place(index, "", {}, f"cpu{index}") for index in range(count)]
    found = sorted(answer, key=lambda one: [one["props"].get(name, 0) for name in _ORDER])
    return [
        Place(index, one["type"], one["props"], one.get("qom-path", "")) for index, one in enumerate(found)
    ]


def unplug_spoils(accelerator: str, version: str) -> bool:
    """Under TCG, QEMU before 10.2 goes on telling a vCPU that was freed of memory changes (softmmu/physmem.c,
    cpu_address_space_init): the next device that is plugged in, or a migration, corrupts its heap. Seen with
    7.2."""
    numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
    return accelerator == "tcg" and numbers < [10, 2]


async def plug(monitor: Monitor, index: int) -> None:
    place = await _place(monitor, index)
    if place.path:
        raise EngineError(f"vCPU {index} is there already")
    await monitor.execute("device_add", {"driver": place.kind, "id": f"vcpu{index}", **place.properties})


async def unplug(monitor: Monitor, index: int) -> None:
    place = await _place(monitor, index)
    if not place.path:
        return
    try:
        await monitor.execute("device_del", {"id": place.path})
    except EngineError as error:
        if "not supported device type" in error.message:
            what = "The guest does not take requests to give up vCPUs: it has not set up its ACPI"
            raise EngineError(what, hint="wait until it has booted") from error
        if "in the process of unplug" not in error.message:
            raise


async def _place(monitor: Monitor, index: int) -> Place:
    found = await places(monitor)
    if index >= len(found) or not found[index].kind:
        raise Unsupported(
            f"This machine has no place for a vCPU {index}", hint="raise cpu.max and restart it"
        )
    return found[index]


class VcpuPlaces:
    """The part of a machine that is about its vCPUs."""

    @property
    def accelerator(self) -> str:
        raise NotImplementedError

    @property
    def version(self) -> str:
        raise NotImplementedError

    async def answering(self) -> Monitor:
        raise NotImplementedError

    async def vcpus(self) -> list[VcpuSlot]:
        return [VcpuSlot(one.index, one.path != "") for one in await places(await self.answering())]

    async def plug_vcpu(self, index: int) -> None:
        await plug(await self.answering(), index)

    @property
    def unplug_spoils(self) -> bool:
        return unplug_spoils(self.accelerator, self.version)

    async def unplug_vcpu(self, index: int) -> None:
        await unplug(await self.answering(), index)
