"""From a spec and a place on the host to pieces of RAM, guest nodes, policies and CPUs; and to argv."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from api_harness import FACTS, HOST, record

from innkeeper.agent import memorycheck
from innkeeper.agent.memoryplan import memory_plan
from innkeeper.control.admission import fitted_to_image, node_promises
from innkeeper.control.numa import Promise
from innkeeper.control.placement import memory_needed, place
from innkeeper.drivers import inherit
from innkeeper.drivers.numa import bind_file
from innkeeper.engine.base import LaunchPlan
from innkeeper.engine.memory import MAIN_RAM, MemoryPlan, RamPlan
from innkeeper.engine.qemu import ram
from innkeeper.engine.qemu.memory_argv import backend_members, memory_options
from innkeeper.engine.qemu.wiring import Descriptors
from innkeeper.errors import EngineError, NoCapacity, SpecError, Unsupported
from innkeeper.spec.host import HostNode, HugePages
from innkeeper.spec.image import ImageRecord
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, InstanceStatus, Power, State
from innkeeper.spec.memory import Memory
from innkeeper.spec.numa import NodeShare
from innkeeper.store.view import InstanceView
from innkeeper.units import GiB, MiB

TWO = (
    HostNode(id=0, cpus=(0, 1), memory_bytes=4 * GiB, available_bytes=3 * GiB, distances=(10, 21)),
    HostNode(id=1, cpus=(2, 3), memory_bytes=4 * GiB, available_bytes=3 * GiB, distances=(21, 10)),
)


def spec(**fields: Any) -> InstanceSpec:
    return InstanceSpec.model_validate({"image": "tiny", **fields})


def placed(wanted: InstanceSpec, *nodes: NodeShare) -> InstanceRecord:
    return record().model_copy(update={"spec": wanted, "nodes": nodes})


def share(node: int, cpus: int, memory: int, guest: int = 0) -> NodeShare:
    return NodeShare(node=node, guest=guest, cpus=cpus, memory_bytes=memory)


def test_on_one_node_nothing_is_bound() -> None:
    one = placed(spec(), share(0, 1, 256 * MiB))
    assert memory_plan(one, TWO[:1], cpus_max=8) == MemoryPlan()
    assert memory_plan(placed(spec()), TWO, cpus_max=8) == MemoryPlan()


def test_on_one_of_two_it_prefers_its_node_and_what_is_dedicated_is_held_to_it() -> None:
    plan = memory_plan(placed(spec(), share(1, 1, 256 * MiB)), TWO, cpus_max=8)
    assert plan.ram == (RamPlan(MAIN_RAM, 256 * MiB, (1,), "preferred"),)
    assert (plan.nodes, plan.host_cpus) == ((), (2, 3))
    held = memory_plan(placed(spec(memory={"prealloc": True}), share(1, 1, 256 * MiB)), TWO, cpus_max=8)
    assert held.ram[0].policy == "bind" and held.prealloc


def test_a_guest_without_numa_on_two_nodes_is_interleaved() -> None:
    plan = memory_plan(
        placed(spec(cpu={"count": 4}), share(0, 2, 128 * MiB), share(1, 2, 128 * MiB)), TWO, cpus_max=4
    )
    assert plan.ram == (RamPlan(MAIN_RAM, 256 * MiB, (0, 1), "interleave"),)
    assert plan.host_cpus == (0, 1, 2, 3)


def test_auto_mirrors_the_hosts_nodes() -> None:
    wanted = spec(cpu={"count": 4}, numa="auto")
    plan = memory_plan(placed(wanted, share(0, 2, 128 * MiB), share(1, 2, 128 * MiB)), TWO, cpus_max=7)
    assert [(one.id, one.size_bytes, one.host_nodes, one.policy) for one in plan.ram] == [
        ("ram0", 128 * MiB, (0,), "preferred"), ("ram1", 128 * MiB, (1,), "preferred"),
    ]  # fmt: skip
    # vCPUs that may come later are dealt out in turn
    assert [one.cpus for one in plan.nodes] == [(0, 1, 4, 6), (2, 3, 5)]
    assert [one.distances for one in plan.nodes] == [(10, 21), (21, 10)]
    assert [one.host_cpus for one in plan.nodes] == [(0, 1), (2, 3)]
    # where it fits on one node, the guest needs to see no more
    alone = memory_plan(placed(wanted, share(1, 4, 256 * MiB)), TWO, cpus_max=8)
    assert (alone.nodes, alone.ram[0].host_nodes) == ((), (1,))


def test_a_spec_that_changed_since_it_was_placed_still_adds_up() -> None:
    wanted = spec(cpu={"count": 3}, memory={"size": "301MiB"}, numa="auto")
    plan = memory_plan(placed(wanted, share(0, 2, 128 * MiB), share(1, 2, 128 * MiB)), TWO, cpus_max=3)
    assert sum(one.size_bytes for one in plan.ram) == 301 * MiB
    assert sorted(cpu for one in plan.nodes for cpu in one.cpus) == [0, 1, 2]


def test_nodes_in_the_spec() -> None:
    numa = {
        "nodes": [
            {"cpus": "0", "memory": "64MiB", "host_node": 1, "distances": [10, 31]},
            {"cpus": "1", "memory": "192MiB"},
        ]
    }
    wanted = spec(cpu={"count": 2}, numa=numa)
    plan = memory_plan(placed(wanted, share(1, 1, 64 * MiB), share(0, 1, 192 * MiB, 1)), TWO, cpus_max=4)
    assert [(one.size_bytes, one.host_nodes, one.policy) for one in plan.ram] == [
        (64 * MiB, (1,), "bind"), (192 * MiB, (0,), "preferred"),
    ]  # fmt: skip
    assert [one.cpus for one in plan.nodes] == [(0, 2), (1, 3)]
    assert [one.distances for one in plan.nodes] == [(10, 31), (20, 10)]
    # on a host of one node only what was asked for is bound
    single = memory_plan(
        placed(wanted, share(0, 1, 64 * MiB), share(0, 1, 192 * MiB, 1)), TWO[:1], cpus_max=2
    )
    assert [one.host_nodes for one in single.ram] == [(0,), ()]


def test_a_private_view_is_never_touched_before_its_moment() -> None:
    plan = LaunchPlan(
        uid="u", name="n", epoch=1, binary="q", machine="m", accelerator="tcg", cpu_model="max", cpus=1,
        memory_bytes=64 * MiB, memory=MemoryPlan(prealloc=True, locked=True, page_bytes=2 * MiB),
    )  # fmt: skip
    piece = plan.backends[0]
    assert backend_members(plan, piece, {})["prealloc"] is True
    with Descriptors(ram.Ram({MAIN_RAM: 99})) as wiring:
        assert "-overcommit" in memory_options(plan, wiring)
    private = LaunchPlan(**{**plan.__dict__, "ram_private": True})
    assert "prealloc" not in backend_members(private, piece, {})
    with Descriptors(ram.Ram({MAIN_RAM: 99})) as wiring:
        assert "-overcommit" not in memory_options(private, wiring)


# ---- placement on nodes ----


def host(*nodes: HostNode) -> Any:
    return HOST.model_copy(update={"facts": FACTS.model_copy(update={"numa": nodes})})


def test_place_chooses_nodes() -> None:
    assert place(spec(), [host(*TWO)], []).nodes == (share(0, 1, 256 * MiB),)
    busy = {"h1": [Promise(0, 2, GiB)]}
    assert place(spec(), [host(*TWO)], [], busy).nodes == (share(1, 1, 256 * MiB),)
    both = place(spec(cpu={"count": 3}, memory={"size": "2GiB"}), [host(*TWO)], [])
    assert [(one.node, one.cpus) for one in both.nodes] == [(0, 2), (1, 1)]
    # what is not to run yet is placed when it starts
    assert place(spec(), [host(*TWO)], [], to_run=False).nodes == ()


def test_place_keeps_to_the_nodes_of_the_spec() -> None:
    numa = {"nodes": [{"cpus": "0", "memory": "1GiB", "host_node": 1}, {"cpus": "1", "memory": "1GiB"}]}
    wanted = spec(cpu={"count": 2}, memory={"size": "2GiB"}, numa=numa)
    assert place(wanted, [host(*TWO)], []).nodes == (share(1, 1, GiB), share(0, 1, GiB, 1))
    gone = {"nodes": [{"cpus": "0", "memory": "256MiB", "host_node": 4}]}
    with pytest.raises(NoCapacity, match="no NUMA node 4; it has: 0, 1"):
        place(spec(numa=gone), [host(*TWO)], [])
    full = {"h1": [Promise(1, 1, 4 * GiB, dedicated=True)]}
    with pytest.raises(NoCapacity, match="node 1 has 0 B left"):
        place(wanted, [host(*TWO)], [], full)


def test_huge_pages_are_not_ordinary_memory() -> None:
    pools = (HugePages(page_bytes=2 * MiB, total=600, free=600),)
    nodes = (TWO[0], TWO[1].model_copy(update={"hugepages": pools}))
    wanted = spec(memory={"size": "1GiB", "hugepages": "2MiB"})
    assert memory_needed(wanted) < 128 * MiB
    assert place(wanted, [host(*nodes)], []).nodes == (share(1, 1, GiB),)
    with pytest.raises(NoCapacity, match="424 pages are missing: inn host set"):
        place(spec(memory={"size": "2GiB", "hugepages": "2MiB"}), [host(*nodes)], [])


def test_promises_of_what_runs() -> None:
    running = InstanceStatus(state=State.RUNNING, started_at=1.0)
    base = record(power=Power.ON, epoch=1)
    where = base.model_copy(update={"nodes": (share(1, 1, 256 * MiB),)})
    views = [InstanceView(where, running, 1)]
    hosts = [host(*TWO)]
    assert node_promises(views, hosts) == {"h1": [Promise(1, 1, 256 * MiB)]}
    assert node_promises(views, hosts, but="web") == {}
    # one that was placed before anybody knew of nodes counts on each
    assert [one.memory_bytes for one in node_promises([InstanceView(base, running, 1)], hosts)["h1"]] == [
        128 * MiB, 128 * MiB,
    ]  # fmt: skip
    late = InstanceView(where, running.model_copy(update={"started_at": 3e9}), 1)
    assert not node_promises([late], hosts)["h1"][0].shown


# ---- the spec ----


@pytest.mark.parametrize(
    ("memory", "told"),
    [
        ({"size": "129MiB", "hugepages": "2MiB"}, "129MiB is not a whole number of huge pages of 2MiB"),
        ({"size": "512MiB", "hugepages": "1GiB"}, "512MiB is not a whole number of huge pages of 1GiB"),
        ({"hugepages": "2MiB", "thp": "always"}, "leave out thp or hugepages"),
        ({"hugepages": "4MiB"}, "2MiB"),
    ],
)
def test_memory_that_cannot_be(memory: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        spec(memory=memory)


def test_an_images_least_memory_is_whole_pages_and_must_suit_the_nodes() -> None:
    image = ImageRecord(
        name="i", id="a" * 64, kind="tiny", boot="kernel", min_memory_bytes=601 * MiB, created_at=1.0
    )
    assert fitted_to_image(spec(memory={"hugepages": "2MiB"}), image).memory.size == 602 * MiB
    numa = {"nodes": [{"cpus": "0", "memory": "256MiB"}]}
    with pytest.raises(SpecError, match="needs 601MiB, and the NUMA nodes have 256MiB"):
        fitted_to_image(spec(numa=numa), image)


# ---- what the host must be able to ----


class Host:
    name, boot_id = "h", "b"
    free = 0

    def qemu(self) -> Any:
        raise AssertionError

    def memory_available_bytes(self) -> int:
        return GiB

    def hugepages_free(self, page_bytes: int) -> int:
        return self.free

    def numa(self) -> tuple[HostNode, ...]:
        return TWO


def blocked(findings: Any) -> list[str]:
    return [str(one.error) for one in findings if one.error]


def test_rules_of_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Host()
    huge = Memory(size=128 * MiB, hugepages="2MiB")
    assert (
        "64 huge pages of 2MiB for it, 0 are free; 64 are missing"
        in blocked(memorycheck.of_start(huge, here))[0]
    )
    here.free = 64
    assert blocked(memorycheck.of_start(huge, here)) == []
    always = Memory(thp="always")
    assert "shmem_enabled is not there" in blocked(memorycheck.of_start(always, here, tmp_path))[0]
    switch = tmp_path / "sys/kernel/mm/transparent_hugepage/shmem_enabled"
    switch.parent.mkdir(parents=True)
    switch.write_text("always within_size advise [never] deny force\n")
    assert "is never); as root: echo advise" in blocked(memorycheck.of_start(always, here, tmp_path))[0]
    switch.write_text("always within_size [advise] never deny force\n")
    assert blocked(memorycheck.of_start(always, here, tmp_path)) == []
    monkeypatch.setattr(memorycheck, "lockable_bytes", lambda: 8 * MiB)
    assert (
        "2.1 GiB of locked memory"
        in blocked(memorycheck.of_start(Memory(size=128 * MiB, locked=True), here))[0]
    )
    monkeypatch.setattr(memorycheck, "lockable_bytes", lambda: None)
    assert blocked(memorycheck.of_start(Memory(locked=True), here)) == []


def test_rules_of_a_fork() -> None:
    here = Host()
    assert "is locked" in blocked(memorycheck.of_fork(Memory(locked=True), here, "web"))[0]
    huge = Memory(size=128 * MiB, hugepages="2MiB")
    assert "64 are missing" in blocked(memorycheck.of_fork(huge, here, "web"))[0]
    (finding,) = memorycheck.of_fork(Memory(prealloc=True), here, "web")
    assert finding.error is None and "taken anew" in finding.what
    assert list(memorycheck.of_fork(Memory(), here, "web")) == []


def test_limits_are_only_given_for_the_time_of_a_start() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with inherit.given(lock_memory=True):
        assert resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] in (before[1], resource.RLIM_INFINITY)
    assert resource.getrlimit(resource.RLIMIT_MEMLOCK) == before


# ---- memory files ----


def test_ram_in_pieces_is_made_found_and_sealed() -> None:
    plan = LaunchPlan(
        uid="u", name="n", epoch=1, binary="q", machine="m", accelerator="tcg", cpu_model="max", cpus=1,
        memory_bytes=8 * MiB,
        memory=MemoryPlan(ram=(RamPlan("ram0", 4 * MiB), RamPlan("ram1", 4 * MiB, (0,), "bind"))),
    )  # fmt: skip
    made = ram.create(plan)
    try:
        os.pwrite(made.parts["ram1"], b"second", 0)
        found = ram.of_process(os.getpid())
        assert os.pread(found.parts["ram1"], 6, 0) == b"second"
        assert (found.size_bytes, set(found.parts)) == (8 * MiB, {"ram0", "ram1"})
        ram.seal(made)
        with pytest.raises(PermissionError):
            os.pwrite(found.parts["ram0"], b"x", 0)
        found.close()
    finally:
        made.close()
    with pytest.raises(EngineError, match="no RAM of ours"):
        ram.of_process(os.getppid())


def test_a_node_that_is_not_there_is_refused() -> None:
    fd = os.memfd_create("x")
    os.ftruncate(fd, MiB)
    try:
        bind_file(fd, (0,), "bind")
        with pytest.raises(Unsupported, match="node 700: there is no such node"):
            bind_file(fd, (700,), "bind")
    finally:
        os.close(fd)
