"""On which of a host's NUMA nodes an instance lies: tables, and properties over any host and any history."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from innkeeper.control.numa import Demand, Promise, capacity, choose, on_node
from innkeeper.errors import NoCapacity
from innkeeper.spec.host import HostNode, HugePages
from innkeeper.spec.numa import GuestNuma, NodeShare, parse_cpu_list
from innkeeper.units import GiB, MiB

RING = {
    1: ((10,),),
    2: ((10, 21), (21, 10)),
    4: ((10, 16, 22, 16), (16, 10, 16, 22), (22, 16, 10, 16), (16, 22, 16, 10)),
}


def nodes(
    count: int,
    *,
    cpus: int = 4,
    memory: int = 4 * GiB,
    available: tuple[int, ...] = (),
    huge: tuple[int, ...] = (),
    bare: frozenset[int] = frozenset(),
) -> list[HostNode]:
    """`huge`: 2 MiB pages of each node's pool; `bare`: nodes with memory only."""
    return [
        HostNode(
            id=one,
            cpus=() if one in bare else tuple(range(one * cpus, (one + 1) * cpus)),
            memory_bytes=memory,
            free_bytes=memory,
            available_bytes=available[one] if available else memory,
            hugepages=(HugePages(page_bytes=2 * MiB, total=huge[one], free=huge[one]),) if huge else (),
            distances=RING[count][one],
        )
        for one in range(count)
    ]


def where(shares: tuple[NodeShare, ...]) -> list[tuple[int, int, int]]:
    return [(one.node, one.cpus, one.memory_bytes) for one in shares]


@pytest.mark.parametrize(
    ("demand", "host", "promises", "expected"),
    [
        # it fits on one: the first of equals
        (Demand(2, GiB), nodes(2), [], [(0, 2, GiB)]),
        # the one whose CPUs are less promised
        (Demand(2, GiB), nodes(2), [Promise(0, 2, GiB)], [(1, 2, GiB)]),
        # then the one with more room
        (Demand(2, GiB), nodes(2), [Promise(0, 0, GiB)], [(1, 2, GiB)]),
        # too little memory on each: two, in equal parts
        (Demand(4, 6 * GiB), nodes(2), [], [(0, 2, 3 * GiB), (1, 2, 3 * GiB)]),
        # unequal room: what is full is filled, the rest goes to the other
        (Demand(4, 5 * GiB), nodes(2), [Promise(0, 0, 3 * GiB)], [(0, 2, GiB), (1, 2, 4 * GiB)]),
        # more vCPUs than a node has CPUs
        (Demand(6, GiB), nodes(2), [], [(0, 3, 512 * MiB), (1, 3, 512 * MiB)]),
        # more than the whole host has CPUs: as on one without NUMA
        (Demand(9, GiB), nodes(2), [], [(0, 5, 512 * MiB), (1, 4, 512 * MiB)]),
        # of four in a ring, two that are neighbours
        (
            Demand(2, 5 * GiB), nodes(4), [Promise(1, 4, 4 * GiB, dedicated=True)],
            [(0, 1, 2560 * MiB), (3, 1, 2560 * MiB)],
        ),
        # a node with memory only gives memory, and no CPUs
        (Demand(2, 6 * GiB), nodes(2, bare=frozenset({1})), [], [(0, 2, 3 * GiB), (1, 0, 3 * GiB)]),
        # memory alone would fit there, but its CPUs would be elsewhere
        (Demand(2, GiB), nodes(2, bare=frozenset({0})), [], [(1, 2, GiB)]),
        # huge pages: where the pool is
        (Demand(1, GiB, 2 * MiB), nodes(2, huge=(0, 512)), [], [(1, 1, GiB)]),
        (Demand(2, GiB, 2 * MiB), nodes(2, huge=(256, 256)), [], [(0, 1, 512 * MiB), (1, 1, 512 * MiB)]),
        # by default an instance may use what others were promised and have not taken
        (Demand(1, 3 * GiB), nodes(1), [Promise(0, 1, 3 * GiB)], [(0, 1, 3 * GiB)]),
        # one node or not: the host may have more vCPUs promised than CPUs
        (Demand(8, GiB), nodes(1), [Promise(0, 9, GiB)], [(0, 8, GiB)]),
    ],
)  # fmt: skip
def test_table(
    demand: Demand, host: list[HostNode], promises: list[Promise], expected: list[tuple[int, int, int]]
) -> None:
    if sum(size for _, _, size in expected) != demand.memory_bytes:
        pytest.fail("the row is wrong")
    assert where(choose(demand, host, promises)) == expected


@pytest.mark.parametrize(
    ("demand", "host", "promises", "told"),
    [
        (Demand(1, 9 * GiB), nodes(2), [], "9.0 GiB of memory, 8.0 GiB are left: node 0 has 4.0 GiB left"),
        (
            Demand(1, 3 * GiB, dedicated=True), nodes(1), [Promise(0, 1, 2 * GiB)],
            "3.0 GiB of dedicated memory, 2.0 GiB are left: node 0 has 2.0 GiB left of 4.0 GiB, 2.0 GiB "
            "promised",
        ),
        (
            Demand(1, 3 * GiB), nodes(1), [Promise(0, 1, 2 * GiB, dedicated=True)],
            "needs 3.0 GiB of memory, 2.0 GiB are left",
        ),
        (
            Demand(1, GiB, 2 * MiB), nodes(2, huge=(100, 12)), [],
            "huge pages of 2MiB, 224 MiB are left: node 0 has 200 MiB left of 200 MiB; "
            "node 1 has 24.0 MiB left of 24.0 MiB; 400 pages are missing: inn host set hugepages.2MiB=N",
        ),
        (Demand(1, GiB, GiB), nodes(1), [], "huge pages of 1GiB, 0 B are left"),
    ],
)  # fmt: skip
def test_refusals_have_numbers(
    demand: Demand, host: list[HostNode], promises: list[Promise], told: str
) -> None:
    with pytest.raises(NoCapacity) as caught:
        choose(demand, host, promises)
    assert told in str(caught.value)
    assert caught.value.details["missing_bytes"] > 0
    assert set(caught.value.details["nodes"]) == {str(node.id) for node in host}


def test_a_node_that_was_asked_for() -> None:
    assert on_node(Demand(2, GiB), 1, nodes(2), []) == NodeShare(node=1, cpus=2, memory_bytes=GiB)
    with pytest.raises(NoCapacity, match="node 1 has"):
        on_node(Demand(2, 5 * GiB), 1, nodes(2), [])
    with pytest.raises(NoCapacity, match="no NUMA node 7"):
        on_node(Demand(2, GiB), 7, nodes(2), [])


# ---- properties ----


@st.composite
def hosts(draw: st.DrawFn) -> list[HostNode]:
    count = draw(st.integers(1, 6))
    rows = [[10] * count for _ in range(count)]
    for one in range(count):
        for other in range(one):
            rows[one][other] = rows[other][one] = draw(st.integers(11, 40))
    made = []
    for one in range(count):
        memory = draw(st.integers(1, 64)) * 64 * MiB
        pool = draw(st.integers(0, memory // (4 * MiB)))
        taken = draw(st.integers(0, pool))
        usable = memory - pool * 2 * MiB
        made.append(
            HostNode(
                id=one,
                cpus=tuple(range(one * 4, one * 4 + draw(st.integers(0, 4)))),
                memory_bytes=memory,
                available_bytes=int(usable * draw(st.floats(0, 1))),
                hugepages=(HugePages(page_bytes=2 * MiB, total=pool, free=pool - taken),),
                distances=tuple(rows[one]),
            )
        )
    return made


DEMANDS = st.builds(
    Demand,
    st.integers(1, 16),
    st.integers(1, 40).map(lambda n: n * 32 * MiB),
    st.sampled_from([0, 0, 2 * MiB]),
    st.booleans(),
)


def promised(demand: Demand, shares: tuple[NodeShare, ...], *, shown: bool = False) -> list[Promise]:
    return [
        Promise(one.node, one.cpus, one.memory_bytes, demand.page_bytes, demand.dedicated, shown)
        for one in shares
    ]


@settings(max_examples=200, deadline=None)
@given(hosts(), st.lists(DEMANDS, max_size=12), st.randoms(use_true_random=False))
def test_properties(host: list[HostNode], wanted: list[Demand], order: object) -> None:
    ledger: list[Promise] = []
    for demand in wanted:
        try:
            shares = choose(demand, host, ledger)
        except NoCapacity as error:
            # It explains: the number that is missing, and every node.
            assert set(error.details["nodes"]) == {str(node.id) for node in host}
            assert "left" in error.message and error.hint
            continue
        # All of it is placed, and each node once.
        assert sum(one.memory_bytes for one in shares) == demand.memory_bytes
        assert sum(one.cpus for one in shares) == demand.cpus
        assert len({one.node for one in shares}) == len(shares)
        # The same question has the same answer, in whatever order it is told.
        shuffled, known = list(host), list(ledger)
        order.shuffle(shuffled)  # type: ignore[attr-defined]
        order.shuffle(known)  # type: ignore[attr-defined]
        assert choose(demand, shuffled, known) == shares
        # No smaller set would do: on any one node alone there is too little room, or too few CPUs.
        if len(shares) > 1:
            for node in host:
                with_cpus = len(node.cpus) >= min(demand.cpus, sum(len(one.cpus) for one in host))
                if with_cpus:
                    with pytest.raises(NoCapacity):
                        on_node(replace(demand, cpus=0), node.id, host, ledger)
        ledger += promised(demand, shares)
        for node in host:
            own = [one for one in ledger if one.node == node.id]
            ordinary = [one for one in own if not one.page_bytes]
            # What promised dedicated memory is never over-committed, whoever came later.
            if any(one.dedicated for one in ordinary):
                assert sum(one.memory_bytes for one in ordinary) <= capacity(node)
            huge = sum(one.memory_bytes for one in own if one.page_bytes)
            assert huge <= capacity(node, 2 * MiB)


def test_a_host_with_a_thousand_vms_is_quick() -> None:
    host = [
        node.model_copy(update={"memory_bytes": 2048 * GiB, "available_bytes": 2048 * GiB})
        for node in nodes(4)
    ]
    ledger = [Promise(n % 4, 2, GiB, dedicated=n % 3 == 0) for n in range(1000)]
    begun = time.perf_counter()
    for _ in range(20):
        choose(Demand(4, 4 * GiB), host, ledger)
    assert (time.perf_counter() - begun) / 20 < 0.05  # some 0.4 ms; the bound is for a busy machine


def test_many_nodes_are_no_explosion() -> None:
    count = 64
    host = [
        HostNode(
            id=one,
            cpus=(2 * one, 2 * one + 1),
            memory_bytes=GiB,
            available_bytes=GiB,
            distances=tuple(10 if one == other else 11 + abs(one - other) for other in range(count)),
        )
        for one in range(count)
    ]
    shares = choose(Demand(20, 10 * GiB), host, [])
    assert [one.node for one in shares] == list(range(shares[0].node, shares[0].node + 10))
    assert {(one.cpus, one.memory_bytes) for one in shares} == {(2, GiB)}


# ---- the guest's topology ----


@pytest.mark.parametrize(
    ("nodes", "cpus", "memory", "told"),
    [
        ([{"cpus": "0-1", "memory": "64MiB"}], 1, 64, "no vCPU 1: the guest has 1"),
        ([{"cpus": "0", "memory": "64MiB"}], 2, 64, "vCPU 1 is on no NUMA node"),
        ([{"cpus": "0", "memory": "64MiB"}, {"cpus": "0-1", "memory": "64MiB"}], 2, 128, "vCPU 0 is on two"),
        ([{"cpus": "0", "memory": "64MiB"}, {"memory": "64MiB"}], 1, 256, "128MiB .* the guest has 256MiB"),
        ([{"cpus": "0", "memory": "64MiB", "distances": [10, 20]}], 1, 64, "2 distances for 1 nodes"),
        ([{"cpus": "0", "memory": "64MiB", "distances": [20]}], 1, 64, "to itself is 10"),
        ([{"cpus": "0", "memory": "64MiB", "distances": [10, 300]}, {"memory": "64MiB"}], 1, 128, "not 300"),
        ([{"cpus": "1-0", "memory": "64MiB"}], 1, 64, "Not a range of CPUs: '1-0'"),
        ([{"cpus": "a", "memory": "64MiB"}], 1, 64, "Not a list of CPUs: 'a'"),
        ([{"cpus": "0", "memory": "1MiB"}], 1, 1, "at least 4MiB"),
    ],
)  # fmt: skip
def test_topologies_that_cannot_be(nodes: list[dict[str, object]], cpus: int, memory: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        GuestNuma.model_validate({"nodes": nodes}).check(cpus, memory * MiB)


def test_distances() -> None:
    numa = GuestNuma.model_validate(
        {
            "nodes": [
                {"cpus": "0,2", "memory": "64MiB", "distances": [10, 31]},
                {"cpus": "1", "memory": "64MiB"},
            ]
        }
    )
    numa.check(3, 128 * MiB)
    assert [numa.distance(0, 1), numa.distance(1, 0), numa.distance(1, 1)] == [31, 20, 10]
    assert parse_cpu_list("0-2,5") == (0, 1, 2, 5)
