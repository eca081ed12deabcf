"""cgroup v2 holds a VM: the limits of CPU time and of memory, measured on a running guest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vms import labhost
from vms.daemon import Daemon

Note = Callable[[str, object], None]
PERIOD_US = 100_000
QUOTA = 0.25
MEASURED_S = 4.0


@pytest.fixture(scope="module")
def busy(plain_host: Daemon) -> Iterator[int]:
    """The QEMU of a guest whose vCPU never rests."""
    vm = plain_host.client.instances.create({"image": "tiny"}, name="busy", start=True, wait="ready")
    vm.exec(["sh", "-c", "(while :; do :; done) >/dev/null 2>&1 &"])
    yield plain_host.status("busy")["pid"]
    vm.remove(force=True)


@pytest.fixture
def group(busy: int) -> Iterator[Path]:
    """The VM's own, which QEMU was started into."""
    path = labhost.cgroup_of(busy)
    assert path.parent.name.startswith("innkeeper-")
    yield path
    (path / "cpu.max").write_text("max")


def rate(pid: int) -> float:
    """CPUs the vCPUs of a VM used, over some seconds."""
    begun, used = time.monotonic(), labhost.vcpu_seconds(pid)
    time.sleep(MEASURED_S)
    return (labhost.vcpu_seconds(pid) - used) / (time.monotonic() - begun)


def test_cpu_max_holds_a_busy_guest(busy: int, group: Path, record_property: Note) -> None:
    free = rate(busy)
    (group / "cpu.max").write_text(f"{int(QUOTA * PERIOD_US)} {PERIOD_US}")
    held = rate(busy)
    record_property("cpus_without_limit", round(free, 3))
    record_property("cpus_with_a_limit_of_0.25", round(held, 3))
    assert free > 2 * QUOTA  # else the limit would prove nothing
    # The emulated host ticks 250 times a second and other people use it: a tick in each period.
    assert 0.7 * QUOTA < held < 1.1 * QUOTA
    throttled = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    assert int(throttled["nr_throttled"]) > 10


def test_memory_is_charged_to_the_group(busy: int, group: Path, plain_host: Daemon) -> None:
    before = int((group / "memory.current").read_text())
    vm = plain_host.client.instances.handle("busy")
    assert vm.exec(["dd", "if=/dev/zero", "of=/tmp/fill", "bs=1M", "count=64"]).status == 0
    grown = int((group / "memory.current").read_text()) - before
    # Some of the guest's free pages have been touched before: its initial RAM disk lay there.
    assert grown >= 32 << 20
