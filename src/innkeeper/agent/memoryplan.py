"""From an instance's memory and NUMA wishes, and where it was placed, to a plan of its RAM: pure."""

from __future__ import annotations

from collections.abc import Sequence

from innkeeper.engine.memory import MAIN_RAM, GuestNodePlan, MemoryPlan, NumaPolicy, RamPlan
from innkeeper.spec.host import HostNode
from innkeeper.spec.instance import InstanceRecord
from innkeeper.spec.memory import steps
from innkeeper.spec.numa import (
    FAR_DISTANCE,
    LOCAL_DISTANCE,
    PIECE_BYTES,
    GuestNuma,
    NodeShare,
    parse_cpu_list,
)


def memory_plan(record: InstanceRecord, host: Sequence[HostNode], *, cpus_max: int) -> MemoryPlan:
    """`host` are its nodes, `cpus_max` the vCPUs it may ever get. On a host of one node nothing is bound,
    unless the spec names the node."""
    memory, numa = record.spec.memory, record.spec.numa
    ram, nodes = _single(record, host)
    if isinstance(numa, GuestNuma):
        ram, nodes = _explicit(record, numa, host, cpus_max)
    elif numa == "auto" and len(record.nodes) > 1:
        ram, nodes = _mirrored(record, host, cpus_max)
    slots, step = steps(memory, memory.size)
    used = [one for piece in ram for one in piece.host_nodes]
    return MemoryPlan(
        ram=ram,
        nodes=nodes,
        host_cpus=_cpus_of(host, used) if len(host) > 1 or used else (),
        page_bytes=memory.page_bytes,
        slots=slots,
        step_bytes=step,
        prealloc=memory.prealloc,
        locked=memory.locked,
        thp=memory.thp,
        merge=memory.merge == "auto",
    )


def _single(
    record: InstanceRecord, host: Sequence[HostNode]
) -> tuple[tuple[RamPlan, ...], tuple[GuestNodePlan, ...]]:
    """The guest sees one node."""
    if len(host) < 2 or not record.nodes:
        return (), ()
    where = tuple(sorted({share.node for share in record.nodes}))
    policy = _policy(record, where, asked=False)
    return (RamPlan(MAIN_RAM, record.spec.memory.size, where, policy),), ()


def _mirrored(
    record: InstanceRecord, host: Sequence[HostNode], cpus_max: int
) -> tuple[tuple[RamPlan, ...], tuple[GuestNodePlan, ...]]:
    """The guest sees a node for each of the host's that it is on, as far from each other."""
    shares = _refitted(record)
    places = {node.id: place for place, node in enumerate(sorted(host, key=lambda node: node.id))}
    by_id = {node.id: node for node in host}
    cpus = _dealt([share.cpus for share in shares], record.spec.cpu.count, cpus_max)
    ram, nodes = [], []
    for number, share in enumerate(shares):
        piece = f"ram{number}"
        distances = by_id[share.node].distances
        ram.append(
            RamPlan(piece, share.memory_bytes, (share.node,), _policy(record, (share.node,), asked=False))
        )
        nodes.append(
            GuestNodePlan(
                piece,
                cpus[number],
                tuple(
                    _guest_distance(number, other, distances, places[one.node])
                    for other, one in enumerate(shares)
                ),
                by_id[share.node].cpus,
            )
        )
    return tuple(ram), tuple(nodes)


def _refitted(record: InstanceRecord) -> list[NodeShare]:
    """The shares for what the spec says now: it may have changed since it was placed."""
    spec, count = record.spec, len(record.nodes)
    placed = (sum(share.cpus for share in record.nodes), sum(share.memory_bytes for share in record.nodes))
    if placed == (spec.cpu.count, spec.memory.size):
        return list(record.nodes)
    unit = spec.memory.page_bytes or PIECE_BYTES
    each = spec.memory.size // count // unit * unit
    parts = [each] * (count - 1) + [spec.memory.size - each * (count - 1)]
    with_cpus = [place for place, share in enumerate(record.nodes) if share.cpus] or [0]
    cpus = [0] * count
    for cpu in range(spec.cpu.count):
        cpus[with_cpus[cpu % len(with_cpus)]] += 1
    return [
        share.model_copy(update={"cpus": cpus[place], "memory_bytes": parts[place]})
        for place, share in enumerate(record.nodes)
    ]


def _guest_distance(number: int, other: int, distances: Sequence[int], place: int) -> int:
    if number == other:
        return LOCAL_DISTANCE
    return distances[place] if place < len(distances) else FAR_DISTANCE


def _explicit(
    record: InstanceRecord, numa: GuestNuma, host: Sequence[HostNode], cpus_max: int
) -> tuple[tuple[RamPlan, ...], tuple[GuestNodePlan, ...]]:
    count = len(numa.nodes)
    named = [parse_cpu_list(node.cpus) for node in numa.nodes]
    listed = {cpu for cpus in named for cpu in cpus}
    with_cpus = [number for number in range(count) if named[number]] or [0]
    ram, nodes = [], []
    for number, node in enumerate(numa.nodes):
        piece = f"ram{number}"
        where = tuple(sorted({share.node for share in record.nodes if share.guest == number}))
        if len(host) < 2 and node.host_node is None:
            where = ()
        later = [
            cpu
            for cpu in range(record.spec.cpu.count, cpus_max)
            if cpu not in listed and with_cpus[cpu % len(with_cpus)] == number
        ]
        policy = _policy(record, where, asked=node.host_node is not None)
        ram.append(RamPlan(piece, node.memory, where, policy))
        nodes.append(
            GuestNodePlan(
                piece,
                (*named[number], *later),
                tuple(numa.distance(number, other) for other in range(count)),
                _cpus_of(host, where),
            )
        )
    return tuple(ram), tuple(nodes)


def _dealt(counts: Sequence[int], cpus: int, cpus_max: int) -> list[tuple[int, ...]]:
    """vCPUs by number: those there are in a row, node by node; those that may come, in turn."""
    dealt: list[list[int]] = []
    begin = 0
    for count in counts:
        dealt.append(list(range(begin, begin + count)))
        begin += count
    takers = [place for place, count in enumerate(counts) if count] or [0]
    for cpu in range(cpus, cpus_max):
        dealt[takers[cpu % len(takers)]].append(cpu)
    return [tuple(one) for one in dealt]


def _policy(record: InstanceRecord, where: tuple[int, ...], *, asked: bool) -> NumaPolicy:
    """What is dedicated or was asked for is held to its nodes; the rest lies there as long as there is room,
    and elsewhere rather than nowhere."""
    if not where:
        return ""
    if asked or record.spec.memory.dedicated:
        return "bind"
    return "preferred" if len(where) == 1 else "interleave"


def _cpus_of(host: Sequence[HostNode], nodes: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted({cpu for node in host if node.id in nodes for cpu in node.cpus}))
