"""Fork under KVM: copies run on from the moment, on pages they share, with little of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import pytest

from vms import forks, labhost
from vms.daemon import Daemon
from vms.forks import Guest
from vms.waiting import eventually

# The promise for an idle tiny fork (SPECIFICATION.md). The lab's kernel gives huge pages wherever it can.
PRIVATE_KIB = 20 * 1024
COUNT = 2
Note = Callable[[str, object], None]


@pytest.fixture(scope="module")
def parent(plain_host: Daemon) -> Iterator[Guest]:
    guest = forks.boot(plain_host, "parent")
    guest.write("before")
    guest.boot_id()  # the kernel makes it when it is first read: before any copy
    yield guest
    guest.remove()


def own_kib(guest: Guest) -> int:
    """What a copy alone holds, RAM and all of its QEMU."""
    return labhost.memory_kib(guest.daemon.status(guest.name)["pid"], "Private_Dirty")


def exits(guest: Guest) -> int:
    return labhost.kvm_counts(guest.daemon.status(guest.name)["pid"])["exits"]


def test_a_copy_runs_from_the_moment(plain_host: Daemon, parent: Guest, record_property: Note) -> None:
    counting = "i=0; while :; do i=$((i+1)); echo $i >/counter; sleep 1; done"
    parent.sh(f"({counting}) >/dev/null 2>&1 & echo $! >/counting")
    eventually(lambda: parent.sh("cat /counter") > "", "the parent counts", 10.0)
    begun = int(parent.sh("cat /counter"))
    answer = parent.instance.fork(name="copy")
    copy = Guest(plain_host, "copy")
    try:
        status = plain_host.status("copy")
        assert status["accelerator"] == "kvm"
        record_property("pause_ms", answer["pause_ms"])
        record_property("times_ms", status["times_ms"])
        assert copy.boot_id() == parent.boot_id()
        for guest in (parent, copy):  # what ran at the moment runs on, in both
            told = int(guest.sh("cat /counter"))
            assert told >= begun
            eventually(
                lambda guest=guest, told=told: int(guest.sh("cat /counter")) > told, "it counts on", 10.0
            )
        parent.write("parent")
        copy.write("copy")
        parent.check("before", "parent")
        copy.check("before", "copy")
        assert exits(copy) > 0 and exits(parent) > 0
    finally:
        copy.remove()
        parent.sh("kill $(cat /counting)")


def test_copies_have_little_of_their_own(plain_host: Daemon, parent: Guest, record_property: Note) -> None:
    answer = parent.instance.fork(count=COUNT, name="small-{}")
    names = [copy["name"] for copy in answer["instances"]]
    try:
        for name in names:
            Guest(plain_host, name).sh("true")
        own = [own_kib(Guest(plain_host, name)) for name in names]
        record_property("private_kib", own)
        # The median: the first of them had the most to do meanwhile.
        assert median(own) <= PRIVATE_KIB, own
        boots = {Guest(plain_host, name).boot_id() for name in names}
        assert boots == {parent.boot_id()}
    finally:
        for name in names:
            Guest(plain_host, name).remove()


def test_a_fork_of_a_fork(plain_host: Daemon, parent: Guest) -> None:
    parent.instance.fork(name="child")
    child = Guest(plain_host, "child")
    child.write("child")
    child.instance.fork(name="grandchild")
    grandchild = Guest(plain_host, "grandchild")
    try:
        grandchild.write("grandchild")
        marks = [path.rsplit("/", 1)[1] for path in parent.sums() if path.startswith(forks.MEMORY)]
        child.check(*marks, "child")
        grandchild.check(*marks, "child", "grandchild")
        parent.check(*marks)
    finally:
        child.remove()
        grandchild.remove()


def test_the_kernel_complains_of_nothing(parent: Guest) -> None:
    """No stall, no lost interrupt, and the paravirtual clock survives. (That the emulated host's TSC is no
    good is true, and said by the guest.)"""
    bad = parent.sh("dmesg | grep -iE 'stall|soft lockup|unexpected|BUG:|nobody cared' || true")
    assert bad == ""
    assert parent.sh("cat /sys/devices/system/clocksource/clocksource0/current_clocksource") == "kvm-clock"


def test_nothing_remains(plain_host: Daemon, parent: Guest) -> None:
    forks.assert_nothing_remains(plain_host, 30.0)
