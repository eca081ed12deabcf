"""Memory of real guests: NUMA nodes they see, and huge pages from the host's pool; forks of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from innkeeper.drivers import hugepages
from innkeeper.errors import NoCapacity, Unsupported
from innkeeper.units import GiB, MiB
from vms.daemon import Daemon
from vms.forks import Guest

pytestmark = pytest.mark.vm
FreshDaemon = Callable[..., Daemon]
PAGE = 2 * MiB
NODES = {
    "nodes": [
        {"cpus": "0", "memory": "64MiB", "host_node": 0, "distances": [10, 31]},
        {"cpus": "1", "memory": "64MiB", "distances": [31, 10]},
    ]
}


def boot(daemon: Daemon, name: str, **spec: Any) -> Guest:
    wanted = {"image": "tiny", "networks": [], "memory": {"size": "128MiB"}} | spec
    daemon.client.instances.create(wanted, name=name, start=True, wait="ready")
    return Guest(daemon, name)


def maps(daemon: Daemon, name: str) -> list[str]:
    """How the kernel maps the RAM of its QEMU: one line a piece."""
    text = Path(f"/proc/{daemon.status(name)['pid']}/numa_maps").read_text()
    return [line for line in text.splitlines() if "innkeeper-ram" in line]


def test_a_guest_sees_its_nodes_and_so_does_its_fork(fresh: FreshDaemon) -> None:
    daemon = fresh(images=True)
    memory = {"size": "128MiB", "prealloc": True, "thp": "never"}
    guest = boot(daemon, "two", cpu={"count": 2}, memory=memory, numa=NODES)
    assert guest.sh("cat /sys/devices/system/node/node*/distance") == "10 31\n31 10"
    cpus = [guest.sh(f"cat /sys/devices/system/node/node{node}/cpulist") for node in (0, 1)]
    assert cpus == ["0", "1"]
    # The host's side: bound where it was asked for, though QEMU was not told; all of it taken at the start.
    bound = [line for line in maps(daemon, "two") if "bind:0" in line]
    assert len(bound) == 1 and len(maps(daemon, "two")) == 2
    pages = sum(int(word[3:]) for line in maps(daemon, "two") for word in line.split() if word[:3] == "N0=")
    assert pages * 4096 == 128 * MiB
    assert "THP_enabled:\t0" in Path(f"/proc/{daemon.status('two')['pid']}/status").read_text()
    guest.sh("echo before > /mark")
    guest.instance.fork(name="copy")
    copy = Guest(daemon, "copy")
    guest.sh("echo parent > /mark")
    assert copy.sh("cat /mark /sys/devices/system/node/node1/distance") == "before\n31 10"
    assert guest.sh("cat /mark") == "parent"
    for name in ("two", "copy"):
        daemon.client.instances.handle(name).remove(force=True)


@pytest.fixture
def pool() -> Iterator[hugepages.Pool]:
    try:
        found = hugepages.pool(PAGE)
        before = found.total
        hugepages.resize(found, before + 1, 1 * GiB)
    except (NoCapacity, Unsupported) as error:
        pytest.skip(f"no huge pages can be reserved here: {error}")
    yield found
    hugepages.resize(found, before, 0)


def test_huge_pages_hold_a_guest_its_fork_and_its_snapshot(fresh: FreshDaemon, pool: hugepages.Pool) -> None:
    daemon = fresh(images=True)
    spec = {"memory": {"size": "128MiB", "hugepages": "2MiB"}}
    daemon.inn("host", "set", f"hugepages.2MiB={pool.total - 1 + 100}").ok()
    guest = boot(daemon, "huge", **spec)
    used = pool.total - pool.unused
    assert used >= 64
    assert any("kernelpagesize_kB=2048" in line and " huge " in line for line in maps(daemon, "huge"))
    refused = daemon.inn("host", "set", "hugepages.2MiB=0").failed(4, "huge pages of 2MiB are in use")
    assert "Traceback" not in refused.err
    # A fork needs as many again for each process; what is missing is said, and nothing is half done.
    with pytest.raises(NoCapacity, match=r"huge pages of 2MiB.* missing"):
        guest.instance.fork(name="copy")
    guest.sh("echo before > /mark")
    daemon.inn("host", "set", f"hugepages.2MiB={used + 200}").ok()
    guest.instance.fork(name="copy")
    copy = Guest(daemon, "copy")
    guest.sh("echo parent > /mark")
    assert copy.sh("cat /mark") == "before"
    daemon.client.instances.handle("copy").remove(force=True)
    daemon.inn("snapshot", "create", "huge", "s1").ok()
    guest.sh("echo later > /mark")
    daemon.inn("snapshot", "restore", "huge", "s1").ok()
    assert guest.sh("cat /mark") == "parent"
    daemon.inn("rm", "--force", "--snapshots", "huge").ok()
    assert pool.total - pool.unused == used - 64, "all pages are back"


def test_more_huge_pages_than_memory(fresh: FreshDaemon) -> None:
    daemon = fresh()
    before = hugepages.pool(PAGE).total
    refused = daemon.inn("host", "set", "hugepages.2MiB=99999999").failed(4)
    assert "pages too many" in refused.err and "at most" in refused.err
    assert hugepages.pool(PAGE).total == before
