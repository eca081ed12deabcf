"""What guest RAM is made of, under KVM: pages of 1 GiB, locked pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from innkeeper.agent import sysfs
from innkeeper.drivers import hugepages
from innkeeper.errors import InnkeeperError
from innkeeper.units import GiB, MiB
from vms import labhost
from vms.daemon import Daemon
from vms.forks import Guest

LOCKED = {
    "image": "tiny",
    "networks": [],
    "memory": {"size": "128MiB", "locked": True, "prealloc": True},
}
NODES = [node for node in sysfs.numa_nodes() if node.memory_bytes]


def pid_of(guest: Guest) -> int:
    return int(guest.daemon.status(guest.name)["pid"])


@pytest.fixture(scope="module")
def locked(plain_host: Daemon) -> Iterator[Guest]:
    plain_host.client.instances.create(LOCKED, name="locked", start=True, wait="ready")
    yield Guest(plain_host, "locked")
    plain_host.client.instances.handle("locked").remove(force=True)


def test_a_vm_lies_on_one_node(locked: Guest) -> None:
    (share,) = locked.daemon.show("locked")["nodes"]
    node = next(node for node in NODES if node.id == share["node"])
    assert labhost.ram_pages_by_node(pid_of(locked)) == {node.id: 128 * MiB // 4096}
    assert all(place <= set(node.cpus) for place in labhost.vcpu_places(pid_of(locked)))


def test_locked_memory_stays(locked: Guest) -> None:
    status = Path(f"/proc/{pid_of(locked)}/status").read_text()
    words = dict(line.split(":", 1) for line in status.splitlines())
    assert int(words["VmLck"].split()[0]) << 10 >= 128 * MiB
    # All of it is there, and of the guest's RAM nothing but what is locked.
    assert labhost.memory_kib(pid_of(locked), "Locked", "innkeeper-ram") << 10 == 128 * MiB


@pytest.fixture(scope="module")
def gigantic(plain_host: Daemon) -> Iterator[Guest]:
    """A guest on one page of 1 GiB; the lab's kernel was told to set one aside at its boot."""
    for node in NODES:
        try:
            pool = hugepages.pool(1 * GiB, node.id)
        except InnkeeperError as error:
            pytest.skip(str(error))
        if pool.unused:
            break
    else:
        pytest.skip("no page of 1 GiB was set aside at boot (hugepagesz=1G hugepages=1)")
    before = pool.total
    # Given back it might not be had again: it takes 1 GiB in one piece.
    plain_host.inn("host", "set", f"hugepages.1GiB={before}", "--node", str(node.id)).ok()
    assert pool.total == pool.unused == before
    spec = {"image": "tiny", "networks": [], "memory": {"size": "1GiB", "hugepages": "1GiB"}}
    plain_host.client.instances.create(spec, name="gigantic", start=True, wait="ready")
    yield Guest(plain_host, "gigantic")
    plain_host.client.instances.handle("gigantic").remove(force=True)
    assert pool.unused == before, "the page is back"


def test_all_of_a_guest_on_one_page_of_1_gib(gigantic: Guest) -> None:
    pid = pid_of(gigantic)
    assert any("kernelpagesize_kB=1048576" in line for line in labhost.ram_maps(pid))
    (share,) = gigantic.daemon.show("gigantic")["nodes"]
    assert labhost.ram_pages_by_node(pid) == {share["node"]: 1}
    seen = gigantic.instance.inspect_memory(512 * MiB, physical=True)
    assert seen["host"]["page_bytes"] == 1 * GiB
    # The hole below 1 MiB cuts the slot, so that no entry of the nested tables can be of all of the page.
    assert seen["composed"]["nested"]["bytes"] == 2 * MiB
    refused = gigantic.daemon.inn("host", "set", "hugepages.1GiB=0", "--node", str(share["node"]))
    refused.failed(4, "1 huge pages of 1GiB are in use")
