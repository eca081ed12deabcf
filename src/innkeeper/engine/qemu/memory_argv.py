"""The part of QEMU's command line that is memory and NUMA; pure, for argv.build_argv."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Protocol

from innkeeper.engine.base import LaunchPlan
from innkeeper.engine.memory import MAIN_RAM, RamPlan
from innkeeper.units import MiB

# QEMU maps a file on the boundary of one of its pages (7.2, file_ram_alloc). Ordinary pages that the kernel
# has put together are mapped as one only where address and offset agree on the lower bits (kernel,
# mm/huge_memory.c, thp_vma_suitable_order), under KVM as well.
HUGE_ALIGN_BYTES: Final = 2 * MiB


class RamWiring(Protocol):
    def ram(self, piece: RamPlan, *, private: bool) -> dict[str, Any]:
        """Members of the memory backend object, without id and size."""


def numa_members(piece: RamPlan) -> dict[str, Any]:
    """For a QEMU that binds its RAM itself."""
    return {"host_nodes": list(piece.host_nodes), "policy": piece.policy} if piece.host_nodes else {}


def machine_option(plan: LaunchPlan) -> list[str]:
    """With NUMA nodes, each of them names its RAM; else the machine has all of it in one piece. QEMU has the
    kernel merge equal pages (MADV_MERGEABLE) unless told otherwise, of RAM and of ROMs."""
    ram = [] if plan.memory.nodes else [f"memory-backend={MAIN_RAM}"]
    return ram if plan.memory.merge else [*ram, "mem-merge=off"]


def memory_options(plan: LaunchPlan, wiring: RamWiring) -> list[str]:
    size = f"size={plan.memory_bytes // MiB}M"
    if plan.memory.slots:
        most = plan.memory_bytes + plan.memory.slots * plan.memory.step_bytes
        size += f",slots={plan.memory.slots},maxmem={most // MiB}M"
    argv = ["-m", size]
    for piece in plan.pieces:
        argv += ["-object", backend_object(plan, piece, wiring.ram(piece, private=plan.ram_private))]
    if plan.memory.locked and not plan.ram_private:
        argv += ["-overcommit", "mem-lock=on"]
    return argv + _nodes(plan)


def dimm_devices(plan: LaunchPlan) -> list[str]:
    """Modules that were plugged in: where the guest has them, the state says."""
    argv: list[str] = []
    for dimm in plan.memory.dimms:
        members = {"driver": "pc-dimm", "id": dimm.id, "memdev": dimm.ram, "slot": dimm.slot}
        members |= {"addr": dimm.address} if dimm.address is not None else {}
        argv += ["-device", json.dumps(members | ({"node": dimm.node} if dimm.node >= 0 else {}))]
    return argv


def backend_object(plan: LaunchPlan, piece: RamPlan, members: dict[str, Any]) -> str:
    return json.dumps(backend_members(plan, piece, members))


def backend_members(plan: LaunchPlan, piece: RamPlan, members: dict[str, Any]) -> dict[str, Any]:
    """A private view must not be touched before its moment: what is touched is copied as it is then, while
    the parent still writes. So neither preallocation nor locking are for it."""
    found = {
        **{key.replace("_", "-"): value for key, value in members.items() if value is not None},
        "id": piece.id,
        "size": piece.size_bytes,
    }
    if found.get("qom-type") == "memory-backend-file" and not plan.memory.page_bytes:
        found["align"] = HUGE_ALIGN_BYTES
    if (plan.memory.prealloc or plan.memory.page_bytes) and not plan.ram_private:
        found["prealloc"] = True
    return found


def _nodes(plan: LaunchPlan) -> list[str]:
    argv: list[str] = []
    for number, node in enumerate(plan.memory.nodes):
        cpus = "".join(f",cpus={span}" for span in _spans(node.cpus))
        argv += ["-numa", f"node,nodeid={number}{cpus},memdev={node.ram}"]
    for number, node in enumerate(plan.memory.nodes):
        for other, distance in enumerate(node.distances):
            if other != number:
                argv += ["-numa", f"dist,src={number},dst={other},val={distance}"]
    return argv


def _spans(cpus: Sequence[int]) -> list[str]:
    """`0-2`, `5`: QEMU takes one span at a time."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return [f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
