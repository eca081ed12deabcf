"""What cgroups of both versions, devices and the host's memory management say: made-up trees, as the kernel's
documentation describes them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from test_sampling_reader import PROGRAM, process

from innkeeper.agent.sampling import accounts, proc, rates
from innkeeper.agent.sampling.accounts import DeviceSample, Paging, Storage
from innkeeper.agent.sampling.devices import Devices
from innkeeper.agent.sampling.files import Budget
from innkeeper.agent.sampling.history import History
from innkeeper.agent.sampling.host import HostTracker
from innkeeper.agent.sampling.reader import GROUPS_EVERY_S, ProcessReader

V1_MEMORY = "cache 5\nrss 7\nworkingset_refault_anon 30\nworkingset_refault_file 12\ntotal_cache 9\n"
V2_MEMORY = "anon 5\nfile 7\nworkingset_refault_anon 3\nworkingset_refault_file 4\npgmajfault 9\n"
PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"


class Tree:
    """A process 10 with one vCPU, and the groups it is in."""

    def __init__(self, root: Path) -> None:
        self.root, self.proc, self._mounts = root, root / "proc", ""
        task = self.proc / "10/task/11"
        task.mkdir(parents=True)
        (self.proc / "self").mkdir()
        (task / "comm").write_text("CPU 0/KVM\n")
        self.ran(task, 0, 0)
        self.stat(0, task)
        self.stat(0)
        (self.proc / "10/statm").write_text("100 50 1 1 0 1 0\n")
        (self.proc / "10/io").write_text("rchar: 9\nread_bytes: 4096\nwrite_bytes: 9\n")
        self.groups("", "")

    def ran(self, task: Path, run_ns: int, wait_ns: int) -> None:
        (task / "schedstat").write_text(f"{run_ns} {wait_ns} 3\n")

    def stat(self, blocked_ticks: int, folder: Path | None = None) -> None:
        fields = "10 (x) S 1 1 1 0 -1 0 1 0 1 0 250 50 0 0 20 0 1 0 700 0 0" + " 0" * 17
        text = f"{fields} {blocked_ticks}" + " 0" * 10
        ((folder or self.proc / "10") / "stat").write_text(text)

    def mount(self, name: str, kind: str, options: str) -> None:
        self._mounts += f"cgroup {self.root}/cgroup/{name} {kind} {options} 0 0\n"
        (self.proc / "self/mounts").write_text(self._mounts)

    def groups(self, own: str, ours: str) -> None:
        (self.proc / "10/cgroup").write_text(own)
        (self.proc / "self/cgroup").write_text(ours)

    def file(self, path: str, text: str) -> None:
        place = self.root / "cgroup" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def _v1(tree: Tree) -> None:
    tree.mount("cpu,cpuacct", "cgroup", "rw,nosuid,cpu,cpuacct")
    tree.mount("memory", "cgroup", "rw,memory")
    tree.groups("4:memory:/inn/vm\n3:cpu,cpuacct:/inn/vm\n0::/\n", "4:memory:/\n3:cpu,cpuacct:/\n0::/\n")
    tree.file("memory/inn/vm/memory.stat", V1_MEMORY)


def _v2(tree: Tree) -> None:
    tree.mount("", "cgroup2", "rw")
    tree.groups("0::/inn/vm\n", "0::/inn/daemon\n")
    tree.file("inn/vm/memory.stat", V2_MEMORY)
    for what, total in (("cpu", 2_000_000), ("memory", 500_000), ("io", 0)):
        tree.file(f"inn/vm/{what}.pressure", PRESSURE.format(total))


V1_CPU = "nr_periods 50\nnr_throttled {}\nthrottled_time {}\nnr_bursts 0\nburst_time 0\n"
V2_CPU = "usage_usec 9\nuser_usec 9\nsystem_usec 0\nnr_periods 50\nnr_throttled {}\nthrottled_usec {}\n"


def test_version_1_counts_throttling_in_nanoseconds_and_has_no_pressure(tree: Tree) -> None:
    _v1(tree)
    tree.file("cpu,cpuacct/inn/vm/cpu.stat", V1_CPU.format(10, 1_000_000_000))
    reader = ProcessReader(10, Budget(), tree.proc)
    before = reader.sample(100.0)
    assert (before.throttled_s, before.refaults, before.pressure) == (1.0, 42, None)
    tree.file("cpu,cpuacct/inn/vm/cpu.stat", V1_CPU.format(30, 9_000_000_000))
    tree.file("memory/inn/vm/memory.stat", V1_MEMORY.replace("30", "130"))
    found = rates.process_rates(before, reader.sample(105.0))
    # Two CPUs, held for 4 s of 5 on each.
    assert found is not None and (found.throttled, found.refaults) == (1.6, 20.0)
    assert found.pressure is None
    reader.close()


def test_version_2_counts_in_microseconds_and_has_pressure(tree: Tree) -> None:
    _v2(tree)
    tree.file("inn/vm/cpu.stat", V2_CPU.format(10, 1_000_000))
    reader = ProcessReader(10, Budget(), tree.proc)
    before = reader.sample(100.0)
    assert (before.throttled_s, before.refaults) == (1.0, 7)
    assert before.pressure == rates.Pressure(2.0, 0.5, 0.0)
    tree.file("inn/vm/cpu.stat", V2_CPU.format(30, 3_000_000))
    tree.file("inn/vm/memory.pressure", PRESSURE.format(3_000_000))
    found = rates.process_rates(before, reader.sample(105.0))
    assert found is not None and (found.throttled, found.refaults) == (0.4, 0.0)
    assert found.pressure == rates.PressureRate(cpu=0.0, memory=0.5, io=0.0)
    reader.close()


def test_version_1_has_the_controllers_beside_an_empty_version_2(tree: Tree) -> None:
    """As systemd has it in its hybrid mode: the group exists in both, the account only in one."""
    _v1(tree)
    tree.file("cpu,cpuacct/inn/vm/cpu.stat", V1_CPU.format(10, 1_000_000_000))
    tree.mount("unified", "cgroup2", "rw")
    tree.groups(
        "4:memory:/inn/vm\n3:cpu,cpuacct:/inn/vm\n0::/inn/vm\n", "4:memory:/\n3:cpu,cpuacct:/\n0::/\n"
    )
    tree.file("unified/inn/vm/cpu.stat", "usage_usec 9\nuser_usec 9\nsystem_usec 0\n")
    for what in ("cpu", "memory", "io"):
        tree.file(f"unified/inn/vm/{what}.pressure", PRESSURE.format(1_000_000))
    sample = ProcessReader(10, Budget(), tree.proc).sample(100.0)
    assert (sample.throttled_s, sample.refaults) == (1.0, 42)
    assert sample.pressure == rates.Pressure(1.0, 1.0, 1.0)


def test_a_group_without_the_controller_counts_nothing(tree: Tree) -> None:
    _v2(tree)
    tree.file("inn/vm/cpu.stat", "usage_usec 9\nuser_usec 9\nsystem_usec 0\n")
    (tree.root / "cgroup/inn/vm/io.pressure").unlink()  # a kernel that was booted without PSI has none
    sample = ProcessReader(10, Budget(), tree.proc).sample(100.0)
    assert (sample.throttled_s, sample.pressure) == (None, None)


def test_a_process_that_is_moved_and_a_group_that_goes(tree: Tree) -> None:
    """QEMU is in its group only once it runs; and whoever may, removes groups."""
    _v1(tree)
    reader = ProcessReader(10, Budget(), tree.proc)
    tree.groups("3:cpu,cpuacct:/\n", "3:cpu,cpuacct:/\n")
    assert reader.sample(100.0).throttled_s is None
    tree.groups("3:cpu,cpuacct:/inn/vm\n", "3:cpu,cpuacct:/\n")
    tree.file("cpu,cpuacct/inn/vm/cpu.stat", V1_CPU.format(10, 5_000_000_000))
    assert reader.sample(100.0 + GROUPS_EVERY_S).throttled_s == 5.0
    (tree.root / "cgroup/cpu,cpuacct/inn/vm/cpu.stat").unlink()
    assert reader.sample(101.0 + GROUPS_EVERY_S).throttled_s is None
    reader.close()


def test_waiting_for_pages_is_known_where_the_kernel_counts_it(tree: Tree) -> None:
    """kernel.task_delayacct: field 42 of the stat of each vCPU's thread."""
    without = ProcessReader(10, Budget(), tree.proc).sample(100.0)
    assert without.threads[0].blocked_s is None
    (tree.proc / "sys/kernel").mkdir(parents=True)
    (tree.proc / "sys/kernel/task_delayacct").write_text("1\n")
    reader = ProcessReader(10, Budget(), tree.proc)
    before = reader.sample(100.0)
    tree.stat(2 * os.sysconf("SC_CLK_TCK"), tree.proc / "10/task/11")
    found = rates.process_rates(before, reader.sample(105.0))
    assert found is not None and found.blocked == 0.4
    assert rates.process_rates(without, reader.sample(105.0)).blocked is None  # type: ignore[union-attr]
    reader.close()


def test_what_reaches_the_storage() -> None:
    told = b"rchar: 9\nwchar: 9\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 4096\n"
    assert accounts.parse_io(told) == Storage(4096, 4096)
    assert accounts.parse_io(told.replace(b"4096", b"99999")) == Storage(99999, 0)
    assert accounts.parse_io(b"rchar: 9\nwchar: 9\n") is None
    before = after = Storage(100, 100)
    assert rates._storage_rate(before, after, 5.0) == rates.StorageRate(0.0, 0.0)
    assert rates._storage_rate(None, after, 5.0) is None


@pytest.mark.parametrize(
    ("text", "refaults"),
    [(V1_MEMORY, 42), (V2_MEMORY, 7), ("workingset_refault 5\n", 5), ("cache 1\nrss 2\n", None), ("", None)],
)
def test_refaults_of_old_and_new_kernels(text: str, refaults: int | None) -> None:
    assert accounts.parse_refaults(text.encode()) == refaults


def _host(root: Path) -> None:
    for folder in ("proc/pressure", "proc/36", "proc/7", "sys/kernel/mm/ksm"):
        (root / folder).mkdir(parents=True)
    (root / "proc/stat").write_text("cpu0 100 0 0 900 0 0 0 0 0 0\n")
    (root / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 500 kB\n")
    (root / "proc/vmstat").write_text("nr_free_pages 7\npswpin 100\nworkingset_refault_anon 4\n")
    (root / "proc/diskstats").write_text(
        " 254 0 vda 10 0 100 5 20 0 300 9 0 1000 14\n 254 1 vda1 1 0 1 1 1 0 1 1 0 1 1\n"
    )
    for pid in ("36", "7"):
        (root / f"proc/{pid}/comm").write_text("ksmd\n")
        text = f"{pid} (ksmd) S 1 1 1 0 -1 0 1 0 1 0 250 50 0 0 20 0 1 0 700 0 0" + " 0" * 30
        (root / f"proc/{pid}/stat").write_text(text)
    (root / "proc/36/cmdline").write_text("")
    (root / "proc/7/cmdline").write_text("./ksmd\0")  # a program of somebody who calls it so
    (root / "sys/kernel/mm/ksm/run").write_text("1\n")


def test_the_hosts_devices_paging_and_page_merging(tmp_path: Path) -> None:
    _host(tmp_path)
    host = HostTracker("h", History(), tmp_path)
    host.devices = {"vda"}
    host.read(100.0, 1_000_100.0)
    assert host.sample is not None and host.sample.paging == Paging(100, 4)
    assert host.sample.devices == {"vda": DeviceSample(51200, 153600, 30, 1.0)}
    (tmp_path / "proc/vmstat").write_text("pswpin 150\nworkingset_refault_anon 24\n")
    (tmp_path / "proc/diskstats").write_text(" 254 0 vda 60 0 1100 5 20 0 300 9 0 3000 14\n")
    text = (tmp_path / "proc/36/stat").read_text()
    (tmp_path / "proc/36/stat").write_text(text.replace(" 250 ", f" {250 + proc.TICKS_PER_S} "))
    host.read(110.0, 1_000_110.0)
    found = host.metrics(used_by_vms=0.3)
    assert (found.swapped_in, found.refaults, found.merger) == (5.0, 2.0, 0.1)
    device = found.devices["vda"]
    assert (device.busy, device.bytes, device.ops) == (0.2, 51200.0, 5.0)
    assert found.other == 0.0  # never below zero, whatever two clocks say
    row = host.history.rows(0.0, 5)[1][-1].average
    assert row["device_busy:vda"] == 0.2 and row["merger"] == 0.1 and row["swapped_in"] == 5.0
    (tmp_path / "sys/kernel/mm/ksm/run").write_text("0\n")
    host.read(120.0, 1_000_120.0)
    assert host.metrics().merger is None


def test_which_device_is_under_a_file(tmp_path: Path) -> None:
    """A partition is part of its disk; a volume on one disk lies on it, one on two is a device itself."""
    image = tmp_path / "disk.qcow2"
    image.write_bytes(b"")
    number = os.stat(image).st_dev
    here = f"{os.major(number)}:{os.minor(number)}"
    blocks, devices = tmp_path / "sys/devices/block", tmp_path / "sys/dev/block"
    devices.mkdir(parents=True)

    def named(target: str) -> str:
        link = devices / here
        link.unlink(missing_ok=True)
        link.symlink_to(blocks / target)
        return Devices(tmp_path).under(image)

    (blocks / "sda/sda1").mkdir(parents=True)
    (blocks / "sda/sda1/partition").write_text("1\n")
    (blocks / "dm-0/slaves").mkdir(parents=True)
    (blocks / "dm-0/slaves/sda1").symlink_to(blocks / "sda/sda1")
    (blocks / "md0/slaves").mkdir(parents=True)
    for name in ("sda1", "sdb1"):
        (blocks / "md0/slaves" / name).mkdir()
    assert [named(target) for target in ("sda", "sda/sda1", "dm-0", "md0")] == ["sda", "sda", "sda", "md0"]
    (devices / here).unlink()
    (tmp_path / "proc/self").mkdir(parents=True)
    mounts = f"22 1 0:40 / / rw - ext4 nothing rw\n23 22 0:41 / {tmp_path} rw shared:1 - nfs4 server:/x rw\n"
    (tmp_path / "proc/self/mountinfo").write_text(mounts)
    assert Devices(tmp_path).under(image) == "nfs4"
    assert Devices(tmp_path).under(tmp_path / "gone") == ""


def test_a_real_process_that_writes() -> None:
    """What the kernel of this host counts for a process of our own."""
    program = PROGRAM.replace("spin)", "rest)").replace(
        'print("up", flush=True)',
        "import os, tempfile\n"
        "file = tempfile.TemporaryFile(dir='.')\n"
        "file.write(bytes(1 << 20)); file.flush(); os.fsync(file.fileno())\n"
        'print("up", flush=True)',
    )
    if not Path("/proc/self/io").exists():
        pytest.skip("this kernel does not count it")
    if subprocess.run(["stat", "-f", "-c", "%T", "."], capture_output=True).stdout.strip() == b"tmpfs":
        pytest.skip("no storage under this directory")
    with process(program) as child:
        reader = ProcessReader(child.pid, Budget())
        storage = reader.sample(time.monotonic()).storage
        assert storage is not None and storage.write_bytes >= 1 << 20
        reader.close()
