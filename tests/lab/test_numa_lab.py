"""NUMA on a host that has two nodes: pages and vCPUs lie where the placement says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from innkeeper.agent import sysfs
from innkeeper.drivers import hugepages
from innkeeper.errors import InnkeeperError
from innkeeper.units import GiB, MiB
from vms import labhost
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


@pytest.fixture
def daemon(plain_host: Daemon) -> Iterator[Daemon]:
    yield plain_host
    for name in plain_host.names():
        plain_host.client.instances.handle(name).remove(force=True)


def boot(daemon: Daemon, name: str, **spec: Any) -> Guest:
    wanted = {"image": "tiny", "networks": [], "memory": {"size": "128MiB"}} | spec
    daemon.client.instances.create(wanted, name=name, start=True, wait="ready")
    return Guest(daemon, name)


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
    pid = daemon.status("two")["pid"]
    wanted = {first.id: 96 * MiB // 4096, second.id: 64 * MiB // 4096}
    assert labhost.ram_pages_by_node(pid) == wanted
    assert labhost.vcpu_places(pid) == [set(second.cpus), set(first.cpus)]
    assert guest.sh("ls -d /sys/devices/system/node/node*").split()[-1].endswith("node1")
    guest.instance.fork(name="copy")
    assert Guest(daemon, "copy").sh("ls -d /sys/devices/system/node/node*").split()[-1].endswith("node1")
    assert labhost.vcpu_places(daemon.status("copy")["pid"]) == [set(second.cpus), set(first.cpus)]


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
        assert labhost.ram_pages_by_node(daemon.status("huge")["pid"]) == {second.id: 64}
        daemon.client.instances.handle("huge").remove(force=True)
    finally:
        hugepages.resize(pool, 0, 0)
