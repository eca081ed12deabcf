"""Facts about hosts that are a few files: v1, v2 and mixed cgroups, NUMA or none, huge pages."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from innkeeper.agent import sysfs
from innkeeper.agent.doctor import DoctorContext
from innkeeper.agent.facts import (
    HostFacts,
    MachineType,
    gather,
    parse_machine_help,
)
from innkeeper.daemon.host import LocalHost
from innkeeper.drivers.run import FaultyRunner, SystemRunner
from innkeeper.engine.kvm import KvmVerdict, boot_id, remember
from innkeeper.paths import Paths

KiB, MiB, GiB = 1024, 1024**2, 1024**3
TCG_ONLY = KvmVerdict("emulated", "2 M/s")

COMMON = {
    "proc/sys/kernel/hostname": "inn1\n",
    "proc/sys/kernel/osrelease": "6.1.0-18-amd64\n",
    "proc/sys/kernel/random/boot_id": "0d1f\n",
    "etc/machine-id": "abc\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nprocessor\t: 1\n",
    "proc/meminfo": "MemTotal: 4194304 kB\nMemFree: 1048576 kB\nMemAvailable: 2097152 kB\nPages: 3\n",
    "sys/devices/system/cpu/online": "0-1\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "sys/kernel/mm/ksm/run": "1\n",
}


def host(root: Path, *parts: Mapping[str, str]) -> Path:
    for part in parts:
        for name, text in part.items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return root


def paths(root: Path) -> Paths:
    return Paths(state=root / "state", run=root / "run")


def look(root: Path) -> HostFacts:
    runner = FaultyRunner(SystemRunner())
    result = asyncio.run(gather(runner, paths(root), root=root, verdict=TCG_ONLY, find=lambda name: None))
    assert runner.calls == []
    return result


def node(number: int, cpus: str, total_kb: int) -> dict[str, str]:
    folder = f"sys/devices/system/node/node{number}"
    return {
        f"{folder}/cpulist": f"{cpus}\n",
        f"{folder}/meminfo": f"Node 0 MemTotal:  {total_kb} kB\nNode 0 MemFree:  {total_kb // 2} kB\n",
        f"{folder}/hugepages/hugepages-2048kB/nr_hugepages": f"{number + 4}\n",
        f"{folder}/hugepages/hugepages-2048kB/free_hugepages": "1\n",
    }


def test_a_plain_host(tmp_path: Path) -> None:
    facts = look(host(tmp_path, COMMON))
    assert (facts.hostname, facts.machine_id, facts.boot_id) == ("inn1", "abc", "0d1f")
    assert (facts.kernel, facts.cpu_model, facts.cpus) == ("6.1.0-18-amd64", "Some CPU @ 2 GHz", (0, 1))
    assert (facts.memory_bytes, facts.available_bytes) == (4 * GiB, 2 * GiB)
    assert (facts.thp_mode, facts.ksm_running) == ("madvise", True)
    assert (facts.tun, facts.bridge, facts.nftables, facts.vhost_net) == (False, None, None, False)
    assert facts.accelerator is TCG_ONLY
    assert facts.state_free_bytes > 0
    assert json.loads(json.dumps(facts.to_dict()))["accelerator"]["kind"] == "emulated"


def test_an_empty_host_is_no_error(tmp_path: Path) -> None:
    facts = look(tmp_path)
    assert (facts.hostname, facts.cpus, facts.memory_bytes, facts.hugepages) == ("", (), 0, ())
    assert (facts.cgroup_version, facts.ksm_running, facts.thp_mode) == ("none", None, "")
    assert len(facts.numa) == 1


# ---- cgroups ----


def test_a_host_with_v2_only(tmp_path: Path) -> None:
    host(
        tmp_path,
        COMMON,
        {
            "proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n",
            "proc/self/cgroup": "0::/user.slice/user-1000.slice\n",
            "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
            "sys/fs/cgroup/user.slice/user-1000.slice/cgroup.controllers": "memory pids\n",
        },
    )
    version, controllers = sysfs.cgroups(tmp_path, uid=0)
    assert version == "v2"
    assert [one.name for one in controllers] == ["cpu", "cpuset", "io", "memory", "pids"]
    assert {one.base for one in controllers} == {str(tmp_path / "sys/fs/cgroup")}
    # A user gets what was delegated to their own cgroup, and no more.
    version, controllers = sysfs.cgroups(tmp_path, uid=1000)
    assert [one.name for one in controllers] == ["memory", "pids"]
    assert controllers[0].base.endswith("user.slice/user-1000.slice")


V1 = {
    "proc/mounts": (
        "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"
        "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n"
        "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
        "cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    ),
    "proc/self/cgroup": "9:name=systemd:/\n4:memory:/box\n3:cpu,cpuacct:/\n0::/\n",
    "sys/fs/cgroup/unified/cgroup.controllers": "\n",
}


def test_a_host_with_v1_and_an_empty_v2_mount(tmp_path: Path) -> None:
    host(tmp_path, COMMON, V1)
    version, controllers = sysfs.cgroups(tmp_path, uid=0)
    assert version == "v1"
    assert [one.name for one in controllers] == ["cpu", "cpuacct", "memory"]
    assert controllers[2].base == str(tmp_path / "sys/fs/cgroup/memory")
    _, as_user = sysfs.cgroups(tmp_path, uid=1000)
    assert as_user[2].base == str(tmp_path / "sys/fs/cgroup/memory/box")


def test_a_host_with_both(tmp_path: Path) -> None:
    host(tmp_path, COMMON, V1, {"sys/fs/cgroup/unified/cgroup.controllers": "hugetlb\n"})
    version, controllers = sysfs.cgroups(tmp_path, uid=0)
    assert version == "hybrid"
    assert [(one.name, one.version) for one in controllers][-1] == ("hugetlb", 2)


def test_a_cgroup_that_is_not_ours_is_not_writable(tmp_path: Path) -> None:
    host(tmp_path, COMMON, V1)  # the folders of the v1 controllers do not exist
    assert not any(one.writable for one in sysfs.cgroups(tmp_path, uid=0)[1])
    (tmp_path / "sys/fs/cgroup/memory").mkdir()
    writable = [one.name for one in sysfs.cgroups(tmp_path, uid=0)[1] if one.writable]
    assert writable == ["memory"]


# ---- NUMA and huge pages ----


def test_two_numa_nodes(tmp_path: Path) -> None:
    online = {"sys/devices/system/cpu/online": "0-8\n"}
    nodes = look(host(tmp_path, COMMON, online, node(1, "2-3", 2048), node(0, "0-1,8", 4096))).numa
    assert [(one.id, one.cpus) for one in nodes] == [(0, (0, 1, 8)), (1, (2, 3))]
    assert [(one.memory_bytes, one.free_bytes) for one in nodes] == [(4 * MiB, 2 * MiB), (2 * MiB, MiB)]
    assert [one.hugepages[0].total for one in nodes] == [4, 5]


def slit(count: int, far: int = 20) -> dict[str, str]:
    """Distances of `count` nodes in a ring: each hop costs 10."""

    def hops(a: int, b: int) -> int:
        return min(abs(a - b), count - abs(a - b))

    return {
        f"sys/devices/system/node/node{one}/distance": " ".join(
            str(10 if one == other else far + 10 * (hops(one, other) - 1)) for other in range(count)
        )
        + "\n"
        for one in range(count)
    }


@pytest.mark.parametrize("count", [2, 4, 8])
def test_several_nodes_with_their_distances(tmp_path: Path, count: int) -> None:
    host(tmp_path, COMMON, *(node(one, f"{2 * one}-{2 * one + 1}", 1 << 20) for one in range(count)))
    host(tmp_path, {"sys/devices/system/cpu/online": f"0-{2 * count - 1}\n"}, slit(count))
    nodes = sysfs.numa_nodes(tmp_path)
    assert [one.id for one in nodes] == list(range(count))
    assert all(one.cpus == (2 * one.id, 2 * one.id + 1) for one in nodes)
    assert all(one.distances[one.id] == 10 for one in nodes)
    assert all(nodes[a].distances[b] == nodes[b].distances[a] for a in range(count) for b in range(count))
    assert nodes[0].distances[count // 2] == 10 + 10 * (count // 2)


def test_a_node_with_memory_only_and_one_with_cpus_only(tmp_path: Path) -> None:
    bare = {"sys/devices/system/node/node2/cpulist": "1\n"}
    host(tmp_path, COMMON, node(0, "0", 4096), node(1, "", 8192), bare)
    nodes = sysfs.numa_nodes(tmp_path)
    assert [(one.cpus, one.memory_bytes) for one in nodes] == [((0,), 4 * MiB), ((), 8 * MiB), ((1,), 0)]


def test_cpus_that_are_offline_are_left_out(tmp_path: Path) -> None:
    host(tmp_path, COMMON, node(0, "0-3", 4096), node(1, "4-7", 4096))
    host(tmp_path, {"sys/devices/system/cpu/online": "0,2,6-7\n"})
    assert [one.cpus for one in sysfs.numa_nodes(tmp_path)] == [(0, 2), (6, 7)]


def test_what_is_available_on_a_node_counts_its_page_cache(tmp_path: Path) -> None:
    text = (
        "Node 0 MemTotal: 4096 kB\nNode 0 MemFree: 1024 kB\nNode 0 Active(file): 512 kB\n"
        "Node 0 Inactive(file): 256 kB\nNode 0 SReclaimable: 128 kB\nNode 0 Active(anon): 999 kB\n"
    )
    host(tmp_path, COMMON, node(0, "0", 4096), node(1, "1", 4096))
    host(tmp_path, {"sys/devices/system/node/node0/meminfo": text})
    assert sysfs.numa_nodes(tmp_path)[0].available_bytes == 1920 * KiB


def test_nodes_are_in_the_record_as_they_are_now(tmp_path: Path) -> None:
    host(tmp_path, COMMON, node(0, "0", 4096), node(1, "1", 4096), slit(2, far=21))
    found = LocalHost(tmp_path, root=tmp_path)
    first, second = found.numa()
    assert (first.cpus, first.distances, second.distances) == ((0,), (10, 21), (21, 10))
    assert (first.hugepages[0].page_bytes, first.hugepages[0].total, first.hugepages[0].free) == (
        2 * MiB,
        4,
        1,
    )
    host(tmp_path, {"sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages": "3\n"})
    assert found.numa()[0].hugepages[0].free == 3


def test_without_numa_the_host_is_node_0(tmp_path: Path) -> None:
    (only,) = look(host(tmp_path, COMMON)).numa
    assert (only.id, only.cpus, only.memory_bytes, only.free_bytes) == (0, (0, 1), 4 * GiB, GiB)


def test_the_only_node_has_all_the_memory(tmp_path: Path) -> None:
    (only,) = look(host(tmp_path, COMMON, node(0, "0-1", 999))).numa
    assert (only.memory_bytes, only.free_bytes, only.hugepages[0].total) == (4 * GiB, GiB, 4)


def test_hugepage_pools_are_listed_small_first(tmp_path: Path) -> None:
    base = "sys/kernel/mm/hugepages/hugepages-"
    pools = look(
        host(
            tmp_path,
            {
                f"{base}1048576kB/nr_hugepages": "2\n",
                f"{base}1048576kB/free_hugepages": "1\n",
                f"{base}2048kB/nr_hugepages": "512\n",
                f"{base}2048kB/free_hugepages": "500\n",
            },
        )
    ).hugepages
    assert [(one.page_bytes, one.total, one.free) for one in pools] == [(2 * MiB, 512, 500), (GiB, 2, 1)]


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-2,5", (0, 1, 2, 5)), ("7", (7,)), ("", ()), ("\n", ()), ("0-1 4", (0, 1, 4)), ("x-y", ())],
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert sysfs.parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("parameter", "value", "meaning"),
    [
        ("kvm_intel/parameters/ept", "Y", "ept"),
        ("kvm_amd/parameters/npt", "1", "npt"),
        ("kvm_amd/parameters/npt", "N", "shadow"),
        ("kvm_intel/parameters/ept", "0", "shadow"),
        ("kvm/parameters/tdp_mmu", "Y", ""),
    ],
)
def test_who_translates_guest_addresses(tmp_path: Path, parameter: str, value: str, meaning: str) -> None:
    assert sysfs.guest_paging(host(tmp_path, {f"sys/module/{parameter}": f"{value}\n"})) == meaning


# ---- QEMU ----

HELP = """Supported machines are:
microvm              microvm (i386)
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)
pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)
pc-i440fx-1.7        Standard PC (i440FX + PIIX, 1996) (deprecated)
none                 empty machine
"""


def test_machine_types_are_read_from_help() -> None:
    assert parse_machine_help(HELP) == (
        MachineType("microvm"),
        MachineType("pc", alias_of="pc-i440fx-7.2"),
        MachineType("pc-i440fx-7.2", default=True),
        MachineType("pc-i440fx-1.7", deprecated=True),
        MachineType("none"),
    )
    assert parse_machine_help("") == ()


def fake_qemu(folder: Path, version: str) -> Path:
    program = folder / "qemu-system-x86_64"
    program.write_text(
        f"#!{sys.executable} -I\nimport sys\n"
        f"print({HELP!r} if 'help' in sys.argv else 'QEMU emulator version {version} (Some 1)')\n"
    )
    program.chmod(0o755)
    return program


def test_qemu_is_asked_once_per_binary(tmp_path: Path) -> None:
    program = fake_qemu(tmp_path, "7.2.22")
    runner = FaultyRunner(SystemRunner())

    def ask() -> HostFacts:
        def find(name: str) -> str | None:
            return str(program) if name == program.name else None

        root = tmp_path / "root"
        return asyncio.run(gather(runner, paths(tmp_path), root=root, verdict=TCG_ONLY, find=find))

    first = ask()
    assert [one.version for one in first.qemu] == ["7.2.22"]
    assert first.qemu[0].machines[1].alias_of == "pc-i440fx-7.2"
    assert ask().qemu == first.qemu
    assert len(runner.calls) == 2  # --version and -machine help, once each
    fake_qemu(tmp_path, "10.0.2-rc1")  # an upgrade
    assert [one.version for one in ask().qemu] == ["10.0.2-rc1"]
    paths(tmp_path).qemu_machines.write_text('{"x": 1}')
    assert ask().qemu[0].version == "10.0.2-rc1"


def test_the_verdict_the_doctor_stored_is_the_one_used(tmp_path: Path) -> None:
    stored = KvmVerdict("broken", "as the doctor found it", checked_boot_id=boot_id())
    where = DoctorContext(SystemRunner(), paths(tmp_path).state, kvm_cache=paths(tmp_path).kvm_verdict)
    assert where.kvm_cache is not None
    remember(where.kvm_cache, stored, where.kvm_device)
    facts = asyncio.run(
        gather(SystemRunner(), paths(tmp_path), root=tmp_path / "root", find=lambda name: None)
    )
    assert facts.accelerator == stored
    assert not (tmp_path / "state" / "kvm.json").exists()


def test_a_qemu_that_does_not_run_is_left_out(tmp_path: Path) -> None:
    broken = tmp_path / "qemu-system-x86_64"
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    facts = asyncio.run(
        gather(
            SystemRunner(),
            paths(tmp_path),
            root=tmp_path / "root",
            verdict=TCG_ONLY,
            find=lambda name: str(broken),
        )
    )
    assert facts.qemu == ()
    assert facts.passt


def test_free_space_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    free = sysfs.free_bytes(tmp_path / "not" / "yet")
    assert abs(free - found.f_bavail * found.f_frsize) < GiB
