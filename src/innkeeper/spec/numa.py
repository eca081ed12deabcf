"""NUMA: the nodes a guest sees, and the host's nodes an instance was given."""

from __future__ import annotations

from typing import Final

from pydantic import Field, field_validator, model_validator

from innkeeper.spec.base import Model, Size
from innkeeper.units import MiB

# QEMU has room for so many (include/sysemu/numa.h, MAX_NODES); a guest of ours never needs more.
MAX_GUEST_NODES: Final = 64
# Distances are one byte; 10 is a node to itself, 255 means unreachable (ACPI 6.4, 5.2.17, SLIT).
# RAM is divided among nodes in pieces of this: huge pages of 2 MiB stay whole.
PIECE_BYTES: Final = 2 * MiB
LOCAL_DISTANCE: Final = 10
FAR_DISTANCE: Final = 20
MAX_DISTANCE: Final = 254


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """`0-2,5` -> 0, 1, 2, 5. Raises ValueError for anything else."""
    found: list[int] = []
    for part in text.split(",") if text else []:
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"Not a list of CPUs: {text!r}; write it like 0-2,5")
        begin, end = int(first), int(last or first)
        if end < begin or end > 4096:
            raise ValueError(f"Not a range of CPUs: {part!r}")
        found.extend(range(begin, end + 1))
    if len(set(found)) != len(found):
        raise ValueError(f"a CPU is named twice in {text!r}")
    return tuple(found)


class GuestNode(Model):
    """One NUMA node as the guest sees it."""

    cpus: str = Field(default="", description="Its vCPUs, such as `0-1,4`; empty: memory only.")
    memory: Size = Field(description="Its RAM.")
    host_node: int | None = Field(
        default=None, ge=0, le=1023, description="The host's node its RAM and vCPUs are held to."
    )
    distances: tuple[int, ...] = Field(
        default=(), description="To every node of the guest, in order; 10 is itself. Empty: 20 to the others."
    )

    @field_validator("cpus")
    @classmethod
    def _a_list(cls, value: str) -> str:
        parse_cpu_list(value)
        return value

    @field_validator("memory")
    @classmethod
    def _whole(cls, value: int) -> int:
        if value < 4 * MiB or value % (2 * MiB):
            raise ValueError("a node's memory is a multiple of 2MiB, at least 4MiB")
        return value


class GuestNuma(Model):
    """The guest's topology, node by node."""

    nodes: tuple[GuestNode, ...] = Field(min_length=1, max_length=MAX_GUEST_NODES)

    @model_validator(mode="after")
    def _possible(self) -> GuestNuma:
        seen: set[int] = set()
        for index, node in enumerate(self.nodes):
            cpus = set(parse_cpu_list(node.cpus))
            if seen & cpus:
                raise ValueError(f"vCPU {min(seen & cpus)} is on two NUMA nodes")
            seen |= cpus
            self._check_distances(index, node)
        return self

    def _check_distances(self, index: int, node: GuestNode) -> None:
        given = node.distances
        if not given:
            return
        if len(given) != len(self.nodes):
            raise ValueError(f"NUMA node {index} has {len(given)} distances for {len(self.nodes)} nodes")
        if given[index] != LOCAL_DISTANCE:
            raise ValueError(f"the distance of NUMA node {index} to itself is {LOCAL_DISTANCE}")
        for other, distance in enumerate(given):
            if other != index and not LOCAL_DISTANCE < distance <= MAX_DISTANCE:
                raise ValueError(
                    f"the distance from NUMA node {index} to {other} is from {LOCAL_DISTANCE + 1} to "
                    f"{MAX_DISTANCE}, not {distance}"
                )

    def check(self, cpus: int, memory_bytes: int, cpus_max: int = 0) -> None:
        """Whether it is the topology of a guest with so much, and up to `cpus_max` vCPUs. Raises
        ValueError."""
        named = sorted(cpu for node in self.nodes for cpu in parse_cpu_list(node.cpus))
        missing = sorted(set(range(cpus)) - set(named))
        if missing:
            raise ValueError(f"vCPU {missing[0]} is on no NUMA node")
        if named[-1] >= max(cpus, cpus_max):
            raise ValueError(f"there is no vCPU {named[-1]}: the guest has {max(cpus, cpus_max)}, from 0")
        total = sum(node.memory for node in self.nodes)
        if total != memory_bytes:
            raise ValueError(
                f"the NUMA nodes have {total // MiB}MiB of memory together, and the guest has "
                f"{memory_bytes // MiB}MiB"
            )

    def distance(self, one: int, other: int) -> int:
        given = self.nodes[one].distances
        if given:
            return given[other]
        return LOCAL_DISTANCE if one == other else FAR_DISTANCE


class NodeShare(Model):
    """What of an instance lies on one node of its host."""

    node: int
    guest: int = Field(default=0, description="Of which of the guest's nodes, where the spec lists them.")
    cpus: int = Field(default=0, description="How many of its vCPUs.")
    memory_bytes: int = Field(default=0, description="How much of its RAM.")
