"""NUMA on a host that has two nodes: pages and vCPUs lie where the placement says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from innkeeper.agent import sysfs
from innkeeper.drivers import hugepages
from innkeeper.errors import InnkeeperError
from innkeeper.units import GiB, MiB
from vms.daemon import Daemon
from vms.forks import Guest

NODES = sysfs.numa_nodes()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        len([node for node in NODES if node.cpus and node.memory_bytes]) < 2,
        reason="needs two NUMA nodes with CPUs and memory: make lab",
    ),
]
FreshDaemon = Callable[..., Daemon]


@pytest.fixture
def daemon(fresh: FreshDaemon) -> Iterator[Daemon]:
    made = fresh(images=True)
    yield made
    for name in made.names():
        made.client.instances.handle(name).remove(force=True)


def boot(daemon: Daemon, name: str, **spec: Any) -> Guest:
    wanted = {"image": "tiny", "networks": [], "memory": {"size": "128MiB"}} | spec
    daemon.client.instances.create(wanted, name=name, start=True, wait="ready")
    return Guest(daemon, name)


def pages_by_node(daemon: Daemon, name: str) -> dict[int, int]:
    """Of guest RAM, by the kernel's own count."""
    found: dict[int, int] = {}
    for line in Path(f"/proc/{daemon.status(name)['pid']}/numa_maps").read_text().splitlines():
        if "innkeeper-ram" not in line:
            continue
        for word in line.split():
            node, equals, count = word.partition("=")
            if equals and node[:1] == "N" and node[1:].isdigit():
                found[int(node[1:])] = found.get(int(node[1:]), 0) + int(count)
    return found


def vcpu_places(daemon: Daemon, name: str) -> list[set[int]]:
    """The host CPUs each vCPU thread may run on, by number (QEMU names its threads)."""
    places = {}
    for task in Path(f"/proc/{daemon.status(name)['pid']}/task").iterdir():
        words = (task / "comm").read_text().split()
        if words[:1] == ["CPU"]:
            places[int(words[1].split("/")[0])] = os.sched_getaffinity(int(task.name))
    return [places[number] for number in sorted(places)]


def test_a_vm_lies_on_one_node(daemon: Daemon) -> None:
    boot(daemon, "one", memory={"size": "128MiB", "prealloc": True})
    (share,) = daemon.show("one")["nodes"]
    node = next(node for node in NODES if node.id == share["node"])
    assert pages_by_node(daemon, "one") == {node.id: 128 * MiB // 4096}
    assert all(place <= set(node.cpus) for place in vcpu_places(daemon, "one"))


def test_the_guests_nodes_are_the_hosts(daemon: Daemon) -> None:
    first, second = (node for node in NODES if node.cpus and node.memory_bytes)
    numa = {
        "nodes": [
            {"cpus": "0", "memory": "64MiB", "host_node": second.id},
            {"cpus": "1", "memory": "96MiB", "host_node": first.id},
        ]
    }
    memory = {"size": "160MiB", "prealloc": True}
    guest = boot(daemon, "two", cpu={"count": 2, "max": 2}, memory=memory, numa=numa)
    assert pages_by_node(daemon, "two") == {first.id: 96 * MiB // 4096, second.id: 64 * MiB // 4096}
    assert vcpu_places(daemon, "two") == [set(second.cpus), set(first.cpus)]
    assert guest.sh("ls -d /sys/devices/system/node/node*").split()[-1].endswith("node1")
    guest.instance.fork(name="copy")
    assert Guest(daemon, "copy").sh("ls -d /sys/devices/system/node/node*").split()[-1].endswith("node1")
    assert vcpu_places(daemon, "copy") == [set(second.cpus), set(first.cpus)]


def test_auto_shows_the_guest_what_it_takes_of_the_host(daemon: Daemon) -> None:
    """More vCPUs than either node has CPUs: both nodes, as far apart as the host's are."""
    first, second = (node for node in NODES if node.cpus and node.memory_bytes)
    count = max(len(first.cpus), len(second.cpus)) + 1
    if count > len(first.cpus) + len(second.cpus):
        pytest.skip("the nodes have too few CPUs")
    guest = boot(daemon, "auto", cpu={"count": count}, numa="auto")
    far = first.distances[1]
    assert guest.sh("cat /sys/devices/system/node/node*/distance") == f"10 {far}\n{far} 10"
    assert len(daemon.show("auto")["nodes"]) == 2


def test_huge_pages_of_one_node(daemon: Daemon) -> None:
    second = [node for node in NODES if node.memory_bytes][-1]
    try:
        pool = hugepages.pool(2 * MiB, second.id)
        hugepages.resize(pool, 64, 1 * GiB)
    except InnkeeperError as error:
        pytest.skip(str(error))
    try:
        daemon.inn("host", "set", "hugepages.2MiB=70", "--node", str(second.id)).ok()
        boot(daemon, "huge", memory={"size": "128MiB", "hugepages": "2MiB"})
        assert [share["node"] for share in daemon.show("huge")["nodes"]] == [second.id]
        assert pages_by_node(daemon, "huge") == {second.id: 64}
        daemon.client.instances.handle("huge").remove(force=True)
    finally:
        hugepages.resize(pool, 0, 0)
