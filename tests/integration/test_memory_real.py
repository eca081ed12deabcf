"""Memory of real guests: NUMA nodes they see, and huge pages from the host's pool; forks of both."""

from __future__ import annotations

import os
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


@pytest.fixture
def shmem_pages() -> Iterator[None]:
    """The host leaves huge pages of memory files to programs, for as long as the test takes."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if os.geteuid() != 0 or not os.access(setting, os.W_OK):
        pytest.skip("only root may say which memory files get huge pages")
    before = setting.read_text().partition("[")[2].partition("]")[0]
    setting.write_text("advise")
    try:
        yield
    finally:
        setting.write_text(before)


def test_transparent_huge_pages_are_mapped_as_such(fresh: FreshDaemon, shmem_pages: None) -> None:
    daemon = fresh(images=True)
    boot(daemon, "thp", memory={"size": "128MiB", "thp": "always", "prealloc": True})
    text = Path(f"/proc/{daemon.status('thp')['pid']}/smaps").read_text()
    of_ram = text.partition("memfd:innkeeper-ram")[2].partition("VmFlags")[0]
    mapped = next(line.split()[1] for line in of_ram.splitlines() if line.startswith("ShmemPmdMapped"))
    assert int(mapped) * 1024 == 128 * MiB


def test_more_huge_pages_than_memory(fresh: FreshDaemon) -> None:
    daemon = fresh()
    before = hugepages.pool(PAGE).total
    refused = daemon.inn("host", "set", "hugepages.2MiB=99999999").failed(4)
    assert "pages too many" in refused.err and "at most" in refused.err
    assert hugepages.pool(PAGE).total == before


def meminfo_mib(guest: Guest) -> int:
    return int(guest.sh("grep MemTotal /proc/meminfo").split()[1]) // 1024


def host_mib(daemon: Daemon, name: str) -> int:
    """What the memory files that its QEMU holds have taken of the host."""
    files = {}
    for fd in Path(f"/proc/{daemon.status(name)['pid']}/fd").iterdir():
        if "innkeeper-ram" in os.readlink(fd):
            seen = fd.stat()
            files[seen.st_ino] = seen.st_blocks * 512
    return sum(files.values()) // MiB


def test_memory_comes_and_goes_and_a_fork_has_it(fresh: FreshDaemon) -> None:
    """Through a fork, a fork of what was forked, a snapshot and kills of the daemon."""
    daemon = fresh(images=True)
    inn = daemon.inn
    guest = boot(daemon, "grows", memory={"size": "256MiB", "max": "768MiB"})
    boot_id, before = guest.boot_id(), meminfo_mib(guest)
    inn("set", "grows", "memory.size=640MiB").ok()
    assert meminfo_mib(guest) - before == 384
    # What lies in the new memory is the fork's, too, and neither sees what the other writes.
    guest.sh("mkdir /new && mount -t tmpfs -o size=500m none /new; echo before > /mark")
    guest.sh("yes 'what lies there' | head -c 8000000 | tee /new/first | md5sum - > /sum")
    guest.sh("dd if=/dev/zero of=/new/filler bs=1M count=220 && cp /new/first /new/last")

    def intact(one: Guest) -> None:
        one.sh("for file in first last; do md5sum -c /sum < /new/$file; done")

    guest.instance.fork(name="copy")
    copy = Guest(daemon, "copy")
    guest.sh("echo parent > /mark")
    assert copy.sh("cat /mark") == "before" and meminfo_mib(copy) - before == 384
    intact(copy)
    copy.remove()
    # The guest needs what it is to give up: that is said, and nothing hangs or breaks.
    said = inn("set", "grows", "memory.size=256MiB").failed(1, "384 MiB", "its guest has", "available")
    assert said.err.count("\n") == 1 and "it keeps 640MiB" in said.err
    seen = daemon.status("grows")
    assert seen["state"] == "running" and seen["memory"]["size"] == 640 * MiB
    # Where there is room for it elsewhere, it moves: 128 MiB less, while the files stay.
    inn("set", "grows", "memory.size=512MiB").ok()
    assert meminfo_mib(guest) - before == 256
    intact(guest)
    # What was forked grows as well, and is forked again; the snapshot brings back what was there.
    inn("set", "grows", "memory.size=768MiB").ok()
    guest.instance.fork(name="copy")
    assert meminfo_mib(copy) - before == 512
    intact(copy)
    copy.remove()
    inn("snapshot", "create", "grows", "s1").ok()
    guest.sh("rm /new/*")
    daemon.kill()
    daemon.start(crash_at="change.emptied")
    inn("set", "grows", "memory.size=256MiB")
    assert daemon.wait_dead() == -9
    daemon.start(crash_at="change.unplugged", wait=False)
    assert daemon.wait_dead() == -9
    daemon.start()
    wanted = 256 * MiB
    daemon.watch("grows", lambda one: one["status"]["memory"]["size"] == wanted, "the next ends it", 15.0)
    assert meminfo_mib(guest) == before
    inn("snapshot", "restore", "grows", "s1").ok()
    assert meminfo_mib(guest) - before == 512
    intact(guest)
    guest.sh("dd if=/dev/zero of=/new/filler bs=1M count=350")
    assert host_mib(daemon, "grows") > 350
    guest.sh("rm /new/*")
    inn("set", "grows", "memory.size=256MiB").ok()
    assert meminfo_mib(guest) == before and daemon.status("grows")["memory"]["size"] == wanted
    assert host_mib(daemon, "grows") <= 256, "the host has it back"
    assert guest.boot_id() == boot_id
    inn("rm", "--force", "--snapshots", "grows").ok()
