"""On which NUMA nodes of a host an instance's vCPUs and RAM are to lie. Pure: nodes and promises in, shares
or the reason why not out.

One node where it fits; else the fewest, and of those the nearest to each other; among equals the one whose
CPUs are least promised, then the one with the most room, then the lowest number. What was placed before
stays: only the newcomer is decided.

Memory that is `dedicated` (huge pages, locked, preallocated) is kept free of over-commitment: a node that has
promised any never promises more than it has. Elsewhere an instance may go by what is available now, as on a
host of one node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from innkeeper.errors import NoCapacity
from innkeeper.spec.host import HostNode
from innkeeper.spec.numa import PIECE_BYTES, NodeShare
from innkeeper.units import format_size, human_size

# All sets of nodes are looked at on hosts of up to so many; on larger ones those around each node.
EXHAUSTIVE_NODES: Final = 8


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be placed. `page_bytes`: of huge pages of this size; 0: ordinary ones."""

    cpus: int
    memory_bytes: int
    page_bytes: int = 0
    dedicated: bool = False

    @property
    def exclusive(self) -> bool:
        return self.dedicated or self.page_bytes > 0


@dataclass(frozen=True, slots=True)
class Promise:
    """What an active instance was given on a node. `shown`: the host's figures have it as taken."""

    node: int
    cpus: int
    memory_bytes: int
    page_bytes: int = 0
    dedicated: bool = False
    shown: bool = True


@dataclass(frozen=True, slots=True)
class _Room:
    node: HostNode
    place: int  # in the order of ids, which is that of the distances
    bytes: int
    cpu_load: float


def choose(demand: Demand, nodes: Sequence[HostNode], promises: Iterable[Promise]) -> tuple[NodeShare, ...]:
    """The shares, by node. Raises NoCapacity with the numbers of every node."""
    ordered = sorted(nodes, key=lambda node: node.id)
    ledger = _Ledger(promises)
    strict = [_room(demand, node, place, ledger) for place, node in enumerate(ordered)]
    found = _fewest(demand, strict)
    if found is None and not demand.exclusive:
        found = _fewest(demand, [_loose(room, ledger) for room in strict])
    if found is None:
        raise _refusal(demand, strict, ledger)
    return _divided(demand, found)


def on_node(demand: Demand, node: int, nodes: Sequence[HostNode], promises: Iterable[Promise]) -> NodeShare:
    """The same, held to one node that was asked for. Raises NoCapacity."""
    chosen = [one for one in nodes if one.id == node]
    if not chosen:
        known = ", ".join(str(one.id) for one in nodes)
        raise NoCapacity(f"the host has no NUMA node {node}", hint=f"it has: {known}")
    return choose(Demand(0, demand.memory_bytes, demand.page_bytes, demand.dedicated), chosen, promises)[
        0
    ].model_copy(update={"cpus": demand.cpus})


class _Ledger:
    """Promises summed up by node."""

    def __init__(self, promises: Iterable[Promise]) -> None:
        self.memory: dict[tuple[int, int], int] = {}  # (node, page size) -> bytes
        self.pending: dict[tuple[int, int], int] = {}
        self.cpus: dict[int, int] = {}
        self.exclusive: set[int] = set()  # nodes with dedicated ordinary memory
        for one in promises:
            key = (one.node, one.page_bytes)
            self.memory[key] = self.memory.get(key, 0) + one.memory_bytes
            if not one.shown:
                self.pending[key] = self.pending.get(key, 0) + one.memory_bytes
            self.cpus[one.node] = self.cpus.get(one.node, 0) + one.cpus
            if one.dedicated and not one.page_bytes:
                self.exclusive.add(one.node)


def capacity(node: HostNode, page_bytes: int = 0) -> int:
    """What a node may promise at most: of huge pages its pool, else all that is in no pool."""
    if page_bytes:
        return sum(pool.total * page_bytes for pool in node.hugepages if pool.page_bytes == page_bytes)
    return max(0, node.memory_bytes - sum(pool.total * pool.page_bytes for pool in node.hugepages))


def _room(demand: Demand, node: HostNode, place: int, ledger: _Ledger) -> _Room:
    """What is left of a node without over-commitment."""
    page = demand.page_bytes
    if page:
        free = sum((p.free - p.reserved) * page for p in node.hugepages if p.page_bytes == page)
    else:
        free = node.available_bytes
    left = min(
        capacity(node, page) - ledger.memory.get((node.id, page), 0),
        free - ledger.pending.get((node.id, page), 0),
    )
    load = ledger.cpus.get(node.id, 0) / len(node.cpus) if node.cpus else 0.0
    unit = page or PIECE_BYTES
    return _Room(node, place, max(0, left) // unit * unit, load)


def _loose(room: _Room, ledger: _Ledger) -> _Room:
    """What is available now, where nobody was promised memory of their own."""
    if room.node.id in ledger.exclusive:
        return room
    left = room.node.available_bytes - ledger.pending.get((room.node.id, 0), 0)
    return _Room(room.node, room.place, max(0, left) // PIECE_BYTES * PIECE_BYTES, room.cpu_load)


def _fewest(demand: Demand, rooms: Sequence[_Room]) -> tuple[_Room, ...] | None:
    """The smallest set of nodes that has it all; the best of its size."""
    # A guest may have more vCPUs than the host has CPUs; more nodes than there are would not help.
    cpus = min(demand.cpus, sum(len(room.node.cpus) for room in rooms))

    def fits(group: Sequence[_Room]) -> bool:
        enough = sum(room.bytes for room in group) >= demand.memory_bytes
        return enough and sum(len(room.node.cpus) for room in group) >= cpus

    for size in range(1, len(rooms) + 1):
        groups = [group for group in _groups(rooms, size) if fits(group)]
        if groups:
            return min(groups, key=_rank)
    return None


def _groups(rooms: Sequence[_Room], size: int) -> Iterator[tuple[_Room, ...]]:
    if len(rooms) <= EXHAUSTIVE_NODES or size == 1:
        yield from combinations(rooms, size)
        return
    for center in rooms:
        by_distance = sorted(rooms, key=lambda room: (_distance(center, room), room.place))
        by_room = sorted(by_distance[1:], key=lambda room: (-room.bytes, room.place))
        for group in (by_distance[:size], [center, *by_room[: size - 1]]):
            yield tuple(sorted(group, key=lambda room: room.place))


def _rank(group: tuple[_Room, ...]) -> tuple[float, float, float, list[int]]:
    """Lower is better."""
    far = sum(_distance(one, other) for one, other in combinations(group, 2))
    load = max(room.cpu_load for room in group)
    return far, load, -sum(room.bytes for room in group), [room.node.id for room in group]


def _distance(one: _Room, other: _Room) -> int:
    if one.place == other.place:
        return 10
    given = one.node.distances
    return given[other.place] if other.place < len(given) else 20


def _divided(demand: Demand, group: tuple[_Room, ...]) -> tuple[NodeShare, ...]:
    """As evenly as the nodes' room and CPUs allow: a guest with NUMA gets nodes of one size."""
    unit = demand.page_bytes or PIECE_BYTES
    memory = _shared_out(demand.memory_bytes, [room.bytes for room in group], unit)
    limits = [len(room.node.cpus) for room in group]
    if sum(limits) < demand.cpus:
        limits = (
            [demand.cpus if limit else 0 for limit in limits] if any(limits) else [demand.cpus] * len(group)
        )
    cpus = _shared_out(demand.cpus, limits, 1)
    return tuple(
        NodeShare(node=room.node.id, cpus=count, memory_bytes=size)
        for room, count, size in zip(group, cpus, memory, strict=True)
    )


def _shared_out(total: int, limits: Sequence[int], unit: int) -> list[int]:
    """`total` over places of limited size, the smallest filled first, what remains in equal parts."""
    shares, left = [0] * len(limits), total
    for count, place in enumerate(sorted(range(len(limits)), key=lambda one: (limits[one], -one))):
        equal = left // (len(limits) - count)
        # Rounded up to whole pieces, so that the last place is never left with more than it has.
        part = min(limits[place], -(-equal // unit) * unit, left)
        if count == len(limits) - 1:
            part = left
        shares[place] = part
        left -= part
    return shares


def _refusal(demand: Demand, rooms: Sequence[_Room], ledger: _Ledger) -> NoCapacity:
    page = demand.page_bytes
    what = f"huge pages of {format_size(page)}" if page else "memory"
    told = "; ".join(
        f"node {room.node.id} has {human_size(room.bytes)} left of {human_size(capacity(room.node, page))}"
        + (
            f", {human_size(promised)} promised"
            if (promised := ledger.memory.get((room.node.id, page), 0))
            else ""
        )
        for room in rooms
    )
    left = sum(room.bytes for room in rooms)
    missing = demand.memory_bytes - left
    if page:
        pages = -(-missing // page)
        hint = f"{pages} pages are missing: inn host set hugepages.{format_size(page)}=N, or less memory"
    else:
        hint = "stop other instances (inn list), or give it less memory"
    kind = "dedicated " if demand.dedicated and not page else ""
    return NoCapacity(
        f"it needs {human_size(demand.memory_bytes)} of {kind}{what}, {human_size(left)} are left: {told}",
        hint=hint,
        details={
            "missing_bytes": missing,
            "nodes": {
                str(room.node.id): {
                    "left_bytes": room.bytes,
                    "capacity_bytes": capacity(room.node, page),
                    "promised_bytes": ledger.memory.get((room.node.id, page), 0),
                }
                for room in rooms
            },
        },
    )
