"""QEMU's answers for the inspector. What has no QMP command is asked through its human monitor, whose
text is parsed here and nowhere else; the source of each form is named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from innkeeper.engine.inspection import AddressSpace, BlockDevice, BlockNode, Nic, Region, Vcpu
from innkeeper.engine.qemu.links import Link
from innkeeper.engine.qemu.qmp import Monitor
from innkeeper.engine.qemu.throttle import in_force
from innkeeper.errors import EngineError
from innkeeper.inspect.registers import Registers, parse_registers

# A QEMU that works answers each of these in a few milliseconds.
DEADLINE_S: Final = 3.0

# softmmu/memory.c, mtree_print_flatview()
_VIEW: Final = re.compile(r"^FlatView #\d+", re.M)
_SPACE: Final = re.compile(r'AS "([^"]*)"')
_RANGE: Final = re.compile(
    r"^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ([^)]*)\): (.*?)(?: @([0-9a-f]{16}))?(?: kvm)?\s*$",
    re.M | re.I,
)
_SYSTEM: Final = "memory"  # the name of the address space all devices and vCPUs share
_HOST: Final = re.compile(r" is (0x[0-9a-f]+)")  # monitor/hmp-cmds-target.c, hmp_gpa2hva()
_INSTRUCTION: Final = re.compile(r"0x[0-9a-f]+: ")  # disas.c, monitor_disas()
_WORDS: Final = re.compile(r"0x([0-9a-f]{2})\b")  # memory_dump(), format x, size b
_LINK: Final = re.compile(
    r"^ \\ (\S+): index=\d+,type=(\w+),(.*?)\s*$", re.M
)  # net/net.c, hmp_info_network()
_DUMP_BYTES: Final = 4096  # of one answer to xp

# command -> the arguments we send; a test checks them against QEMU's schema.
SCHEMA: Final[dict[str, tuple[str, ...]]] = {
    "human-monitor-command": ("command-line", "cpu-index"),
    "query-cpus-fast": (),
    "query-memdev": (),
    "query-balloon": (),
    "query-block": (),
    "query-blockstats": (),
    "query-named-block-nodes": ("flat",),
    "query-rx-filter": (),
    "qom-get": ("path", "property"),
}
# Those that some QEMUs lack; the answer then says "not known".
OPTIONAL: Final[dict[str, tuple[str, ...]]] = {
    "query-stats": ("target", "providers"),  # 7.1
    "x-query-virtio-status": ("path",),  # 7.2
    "x-query-virtio-queue-status": ("path", "queue"),
}


class QemuInspection:
    """Of one connected monitor, and the network connections of the same VM, in the order of its cards."""

    def __init__(self, monitor: Monitor, links: Sequence[Link] = ()) -> None:
        self._monitor = monitor
        self._links = links

    async def _ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        return await self._monitor.execute(command, arguments, DEADLINE_S)

    async def _human(self, line: str, cpu: int | None = None) -> str:
        arguments = {"command-line": line} | ({} if cpu is None else {"cpu-index": cpu})
        return str(await self._ask("human-monitor-command", arguments))

    async def registers(self) -> list[Registers]:
        return parse_registers(await self._human("info registers -a"))

    async def vcpus(self) -> list[Vcpu]:
        return [
            Vcpu(one["cpu-index"], one["thread-id"], one["qom-path"], dict(one.get("props", {})))
            for one in await self._ask("query-cpus-fast")
        ]

    async def physical_bits(self, vcpu: Vcpu) -> int:
        return int(await self._property(vcpu.path, "phys-bits"))

    async def gigabyte_pages(self, vcpu: Vcpu) -> bool:
        return bool(await self._property(vcpu.path, "pdpe1gb"))

    async def _property(self, path: str, name: str) -> Any:
        return await self._ask("qom-get", {"path": path, "property": name})

    async def address_space(self, *, smm_of: int | None = None) -> AddressSpace:
        found = parse_views(await self._human("info mtree -f"))
        # Under KVM the space of system management mode has one name for all vCPUs (target/i386/kvm/kvm.c).
        names = [f"cpu-smm-{smm_of}", "KVM-SMRAM"] if smm_of is not None else []
        regions = next((found[name] for name in [*names, _SYSTEM] if name in found), [])
        places: dict[str, int] = {}
        for region in regions:
            if region.kind != "i/o" and region.name not in places:
                host = await self._host_address(region.start)
                if host:
                    places[region.name] = host - region.offset
        blocks = {str(one.get("id", "")): int(one["size"]) for one in await self._ask("query-memdev")}
        return AddressSpace([_placed(region, places) for region in regions], blocks)

    async def _host_address(self, physical: int) -> int:
        """0 where no RAM is."""
        match = _HOST.search(await self._human(f"gpa2hva {physical:#x}"))
        return int(match[1], 16) if match else 0

    async def read_physical(self, address: int, size: int) -> bytes:
        data = b""
        while len(data) < size:
            count = min(size - len(data), _DUMP_BYTES)
            text = await self._human(f"xp /{count}xb {address + len(data):#x}")
            values = [
                int(word, 16) for line in text.splitlines() for word in _WORDS.findall(line.partition(":")[2])
            ]
            if len(values) != count:
                raise EngineError(f"QEMU cannot read guest memory at {address:#x}")
            data += bytes(values)
        return data

    async def disassemble(self, cpu: int, address: int, count: int) -> list[str]:
        text = await self._human(f"x /{count}i {address:#x}", cpu)
        return [
            " ".join(line.split()) for line in text.splitlines() if re.match(r"0x[0-9a-f]+:", line.strip())
        ]

    async def balloon_bytes(self) -> int | None:
        try:
            return int((await self._ask("query-balloon"))["actual"])
        except EngineError as error:
            if error.details.get("class") in ("DeviceNotActive", "KVMMissingCap"):
                return None
            raise

    async def kvm_counters(self) -> dict[str, dict[str, int]]:
        asked = {"target": "vcpu", "providers": [{"provider": "kvm"}]}
        try:
            answer = await self._ask("query-stats", asked)
        except EngineError as error:
            if error.details.get("timeout"):
                raise
            return {}  # not in a QEMU before 7.1, or not by this kernel
        return {str(one.get("qom-path", "")): counters_of(one["stats"]) for one in answer}

    async def block_nodes(self) -> dict[str, BlockNode]:
        nodes = await self._ask("query-named-block-nodes", {"flat": True})
        return {one["node-name"]: _node(one) for one in nodes}

    async def block_devices(self) -> list[BlockDevice]:
        front = {one.get("qdev", ""): one for one in await self._ask("query-block")}
        found = []
        for one in await self._ask("query-blockstats"):
            path = one.get("qdev", "")
            if one.get("node-name") and path:
                end = front.get(path, {})
                inserted = end.get("inserted") or {}
                found.append(
                    BlockDevice(
                        node=one["node-name"],
                        path=path,
                        io_status=str(end.get("io-status", "")),
                        writeback=bool(inserted.get("cache", {}).get("writeback", True)),
                        stats=one["stats"],
                        in_flight=await self._in_flight(path),
                        throttle=in_force(inserted),
                    )
                )
        return found

    async def _in_flight(self, path: str) -> int | None:
        """Requests a virtio device has taken from its queues and not answered yet."""
        try:
            device = await self._ask("x-query-virtio-status", {"path": path})
            total = 0
            for queue in range(int(device["num-vqs"])):
                arguments = {"path": path, "queue": queue}
                total += int((await self._ask("x-query-virtio-queue-status", arguments))["inuse"])
            return total
        except EngineError as error:
            if error.details.get("timeout"):
                raise
            return None  # not virtio, or a QEMU before 7.2

    async def nics(self) -> list[Nic]:
        filters = {one["name"]: one for one in await self._ask("query-rx-filter")}
        text = await self._human("info network")
        # A stream that lost its other end has nothing after its type.
        ends = {name: bool(info) if kind == "stream" else None for name, kind, info in _LINK.findall(text)}
        names = sorted(ends, key=lambda name: (len(name), name))
        streams = [name for name in names if ends[name] is not None]
        ours = dict(zip(streams, self._links, strict=True)) if len(streams) == len(self._links) else {}
        return [
            _nic(name, ends[name], filters.get(f"{name}-dev", {}), ours.get(name)) for name in sorted(ends)
        ]


def _nic(name: str, connected: bool | None, told: Mapping[str, Any], link: Link | None) -> Nic:
    if link is None:
        return Nic(name, connected, told)
    return Nic(name, connected, told, link.passt_pid, link.waiting_bytes() if link.fd >= 0 else None)


def counters_of(stats: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The plain numbers of query-stats: not its histograms, nor its yes and no."""
    values = ((one["name"], one.get("value")) for one in stats)
    return {name: value for name, value in values if isinstance(value, int) and not isinstance(value, bool)}


def parse_views(text: str) -> dict[str, list[Region]]:
    """`info mtree -f`: the regions of each address space, by its name."""
    found: dict[str, list[Region]] = {}
    for block in _VIEW.split(text)[1:]:
        regions = list(_regions(block))
        found |= dict.fromkeys(_SPACE.findall(block), regions)
    return found


def _regions(block: str) -> Iterator[Region]:
    for first, last, kind, name, offset in _RANGE.findall(block):
        yield Region(int(first, 16), int(last, 16) + 1, kind, name, int(offset or "0", 16))


def _placed(region: Region, places: Mapping[str, int]) -> Region:
    if region.name not in places:
        return region
    host = places[region.name] + region.offset
    return Region(region.start, region.end, region.kind, region.name, region.offset, host)


def _node(one: Mapping[str, Any]) -> BlockNode:
    image, cache = one.get("image", {}), one.get("cache", {})
    return BlockNode(
        name=one["node-name"],
        driver=str(one.get("drv", "")),
        virtual_bytes=int(image.get("virtual-size", 0)),
        allocated_bytes=int(image.get("actual-size", 0)),
        readonly=bool(one.get("ro")),
        direct=bool(cache.get("direct")),
        no_flush=bool(cache.get("no-flush")),
        bitmaps=tuple(one.get("dirty-bitmaps", ())),
        detect_zeroes=str(one.get("detect_zeroes", "off")),
    )
