"""Control groups on hosts of all kinds: v1, v2, both, delegated, refused; and groups that disappear."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from fakes.cgroups import FakeHost
from helpers import run
from innkeeper.drivers import cgrouptree
from innkeeper.drivers.cgroup import Cgroups, Place
from innkeeper.drivers.cgrouptree import how_to_get
from innkeeper.drivers.cgroupvalues import (
    CpuLimit,
    CpuWeight,
    IoWeight,
    MemoryHigh,
    MemoryLow,
    MemoryMax,
    MemoryMin,
    Setting,
    SwapMax,
    Version,
    clamp_weight,
    writes,
)
from innkeeper.errors import Failed, Unsupported

UID = "00000000-1111-2222-3333-444444444444"
V1 = ("cpu,cpuacct", "memory", "blkio")
V2 = ("cpu", "memory", "io", "pids")
USER = "/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope"


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgrouptree, "_privileged", lambda: False)


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgrouptree, "_privileged", lambda: True)


# ---- values ----


@pytest.mark.parametrize(
    ("setting", "version", "expected"),
    [
        (CpuWeight(100), 1, {"cpu.shares": "1024"}),
        (CpuWeight(10_000), 1, {"cpu.shares": "102400"}),
        (CpuWeight(1), 1, {"cpu.shares": "10"}),
        (CpuWeight(250), 2, {"cpu.weight": "250"}),
        (
            CpuLimit(150_000),
            1,
            {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000", "cpu.cfs_burst_us": "0"},
        ),
        (CpuLimit(150_000, 50_000, 10_000), 2, {"cpu.max": "150000 50000", "cpu.max.burst": "10000"}),
        (
            CpuLimit(None),
            1,
            {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1", "cpu.cfs_burst_us": "0"},
        ),
        (CpuLimit(None), 2, {"cpu.max": "max 100000", "cpu.max.burst": "0"}),
        (MemoryMin(5), 2, {"memory.min": "5"}),
        (MemoryLow(0), 1, {"memory.soft_limit_in_bytes": "-1"}),
        (MemoryLow(7), 1, {"memory.soft_limit_in_bytes": "7"}),
        (MemoryLow(7), 2, {"memory.low": "7"}),
        (MemoryHigh(None), 2, {"memory.high": "max"}),
        (MemoryMax(9), 1, {"memory.limit_in_bytes": "9"}),
        (MemoryMax(None), 1, {"memory.limit_in_bytes": "-1"}),
        (MemoryMax(9), 2, {"memory.max": "9"}),
        (SwapMax(1, 9), 1, {"memory.memsw.limit_in_bytes": "10"}),
        (SwapMax(None, 9), 1, {"memory.memsw.limit_in_bytes": "-1"}),
        (SwapMax(1), 2, {"memory.swap.max": "1"}),
        (IoWeight(2000), 1, {"blkio.bfq.weight": "1000", "blkio.weight": "1000"}),
        (IoWeight(2000), 2, {"io.weight": "default 2000", "io.bfq.weight": "1000"}),
    ],
)
def test_each_version_has_its_own_words(setting: Setting, version: Version, expected: dict[str, str]) -> None:
    assert dict(value for one in writes(setting, version) for value in one.values) == expected


@pytest.mark.parametrize("setting", [MemoryMin(1), MemoryHigh(1), SwapMax(1)])
def test_what_v1_has_no_word_for_is_said(setting: Setting) -> None:
    with pytest.raises(Unsupported, match="v1"):
        writes(setting, 1)


def test_a_weight_stays_within_what_the_kernel_takes() -> None:
    assert [clamp_weight(one) for one in (0, 0.4, 1.6, 99_999)] == [1, 1, 2, 10_000]


# ---- where ----


def test_root_has_them_at_the_top_beside_systemd(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v2=V2, own="/system.slice/innkeeper.service")
    groups = host.detect()
    assert groups.controllers == {"cpu": "", "memory": "", "io": ""}
    place = groups.bases["cpu"]
    assert place.version == 2
    assert place.path.parent == tmp_path / "sys/fs/cgroup"
    assert groups.bases["memory"] == place
    assert not place.path.exists()  # made when there is something to put into it


def test_a_daemon_that_somebody_put_into_a_group_stays_there(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v1=V1, own="/docker/abc")
    assert host.detect().bases["memory"].path.parent == tmp_path / "sys/fs/cgroup/memory/docker/abc"


def test_a_user_has_what_was_delegated_and_the_daemon_goes_into_a_leaf(tmp_path: Path, as_user: None) -> None:
    host = FakeHost(tmp_path, v2=("cpu", "memory", "pids"), own=USER)
    groups = host.detect()
    assert groups.why_not("cpu") == groups.why_not("memory") == ""
    assert "not mounted" in groups.why_not("io")
    own = tmp_path / f"sys/fs/cgroup{USER}"
    assert (own / cgrouptree.DAEMON_LEAF / "cgroup.procs").read_text() == f"{os.getpid()}\n"
    assert (own / "cgroup.procs").read_text() == ""
    group = groups.create(UID)
    assert group.write(CpuWeight(300))
    assert (group.places["cpu"].path / "cpu.weight").read_text() == "300"


def test_the_next_daemon_is_in_that_leaf_already(tmp_path: Path, as_user: None) -> None:
    FakeHost(tmp_path, v2=V2, own=USER).detect()
    (tmp_path / "proc/self/cgroup").write_text(f"0::{USER}/{cgrouptree.DAEMON_LEAF}\n")
    again = FakeHost.__new__(FakeHost)
    again.__dict__ |= {
        "root": tmp_path,
        "v2": V2,
        "top": tmp_path / "sys/fs/cgroup",
        "fail": {},
        "writes": [],
    }
    assert again.detect().bases["cpu"].path.parent == tmp_path / f"sys/fs/cgroup{USER}"


def test_others_in_a_users_group_are_not_moved(tmp_path: Path, as_user: None) -> None:
    host = FakeHost(tmp_path, v2=V2, own=USER)
    with (tmp_path / f"sys/fs/cgroup{USER}/cgroup.procs").open("a") as procs:
        procs.write("1234567\n")
    groups = host.detect()
    assert "other processes are in" in groups.why_not("cpu")
    assert groups.bases == {}


def test_a_user_without_delegation_is_told_why(tmp_path: Path, as_user: None) -> None:
    host = FakeHost(tmp_path, v2=V2, own="/user.slice/user-1000.slice/session-2.scope")
    host.fail["mkdir"] = errno.EACCES
    groups = host.detect()
    assert groups.bases == {}
    assert all("Permission denied" in groups.why_not(name) for name in ("cpu", "memory", "io"))
    with pytest.raises(Unsupported):
        groups.create(UID).write(CpuWeight(100))


def test_what_was_not_delegated_is_named(tmp_path: Path, as_user: None) -> None:
    host = FakeHost(tmp_path, v2=V2, own=USER)
    (tmp_path / f"sys/fs/cgroup{USER}/cgroup.controllers").write_text("memory pids")
    groups = host.detect()
    assert "not delegated" in groups.why_not("cpu")
    assert groups.why_not("memory") == ""
    assert sorted(groups.create(UID).places) == ["memory"]


def test_v1_and_v2_side_by_side(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v1=("cpu,cpuacct",), v2=("memory", "io"))
    groups = host.detect()
    assert [groups.bases[name].version for name in ("cpu", "cpuacct", "memory", "io")] == [1, 1, 2, 2]
    group = groups.create(UID)
    group.add([7])
    assert group.pids() == {7}
    assert len(group.paths) == 2
    assert group.write(CpuWeight(200), MemoryMin(1 << 20))
    assert group.cpu_s() == 1.5


def test_an_empty_v2_mount_has_nothing(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v1=V1, v2=("pids",))
    assert host.detect().bases["cpu"].version == 1


def test_a_host_without_any(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    groups = Cgroups.detect(Path("/state"), tmp_path)
    assert groups.bases == {}
    assert "not mounted" in groups.why_not("cpu")
    assert Cgroups().why_not("cpu")


# ---- one group ----


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_group_from_its_making_to_its_end(tmp_path: Path, kind: str) -> None:
    host = FakeHost(tmp_path, **{kind: V1 if kind == "v1" else V2})
    groups = host.detect()

    async def scenario() -> None:
        group = groups.create(UID)
        group.add([41, 42, 0])
        assert group.pids() == {41, 42}
        assert group.exists()
        assert group.cpu_s() == (1.5 if kind == "v1" else 2.5)
        assert group.memory_bytes() == 4096
        assert group.counts("cpu", "cpu.stat")["nr_throttled"] == 0
        assert groups.leftover() == {UID: group.paths[0]}
        parent = group.paths[0].parent
        groups.leave(UID)
        host.end(41)
        await asyncio.sleep(0.01)
        assert group.exists()  # the other still lives
        host.end(42)
        await groups.close()
        assert not parent.exists()
        assert groups.leftover() == {}

    run(scenario())


def test_a_start_right_after_the_end_keeps_the_group(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v2=V2)
    groups = host.detect()

    async def scenario() -> None:
        groups.create(UID).add([41])
        groups.leave(UID)
        again = groups.create(UID)
        host.end(41)
        await asyncio.sleep(0.02)
        assert again.exists()
        again.add([43])
        assert again.pids() == {43}

    run(scenario())


def test_what_is_so_already_is_not_written_again(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v2=V2)
    group = host.detect().create(UID)
    for _ in range(2):
        assert group.write(CpuWeight(100), CpuLimit(50_000))
    assert host.writes.count("cpu.max=50000 100000") == 1
    assert group.write(CpuLimit(None))
    assert host.writes[-1] == "cpu.max=max 100000"


def test_a_group_that_disappeared_is_made_anew_with_all_it_had(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v1=V1)
    groups = host.detect()
    group = groups.create(UID)
    assert group.write(CpuWeight(300))
    for path in group.paths:
        host.destroy(path)
    host.rmdir(group.paths[0].parent)
    assert not group.exists()
    assert not group.write(CpuWeight(300))
    assert not group.write(CpuWeight(400))
    with pytest.raises(Failed, match="No such file"):
        group.add([5])
    assert groups.create(UID) is group
    assert group.write(CpuWeight(300))
    assert (group.places["cpu"].path / "cpu.shares").read_text() == "3072"


@pytest.mark.parametrize("limits", [(100, 10), (5000, 0), (50, 5), (None, None), (70, 700)])
def test_limits_of_memory_and_swap_in_any_order(
    tmp_path: Path, limits: tuple[int | None, int | None]
) -> None:
    host = FakeHost(tmp_path, v1=V1)
    group = host.detect().create(UID)
    for size, swap in ((1000, 0), limits, (200, 20)):
        assert group.write(MemoryMax(size), SwapMax(swap, size))
        both = "-1" if size is None or swap is None else str(size + swap)
        path = group.places["memory"].path
        assert (path / "memory.limit_in_bytes").read_text() == ("-1" if size is None else str(size))
        assert (path / "memory.memsw.limit_in_bytes").read_text() == both


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINVAL, errno.EPERM, errno.EIO])
def test_what_the_kernel_refuses_is_one_line(tmp_path: Path, number: int) -> None:
    host = FakeHost(tmp_path, v2=V2)
    group = host.detect().create(UID)
    host.fail["memory.max"] = number
    with pytest.raises(Failed) as told:
        group.write(MemoryMax(1))
    assert "memory.max" in told.value.message
    assert os.strerror(number) in told.value.message


def test_a_kernel_without_a_file(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v2=V2)
    group = host.detect().create(UID)
    for name in ("cpu.max.burst", "memory.swap.max", "io.weight"):
        (group.paths[0] / name).unlink()
    assert group.write(CpuLimit(1000), SwapMax(None))  # as it is anyway
    for setting in (CpuLimit(1000, burst_us=5), SwapMax(0), IoWeight(200)):
        with pytest.raises(Unsupported, match="no "):
            group.write(setting)


def test_a_full_hierarchy_is_an_error_of_ours(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v2=V2)
    groups = host.detect()
    host.fail["mkdir"] = errno.EAGAIN  # cgroup.max.descendants
    with pytest.raises(Failed, match="Cannot make"):
        groups.create(UID)


# ---- what an earlier daemon left ----


def test_a_vm_is_found_where_an_earlier_daemon_put_it(tmp_path: Path) -> None:
    """Which was in another group of its own."""
    host = FakeHost(tmp_path, v1=("cpu", "memory"), own="/box/new")
    elsewhere = "box/old/innkeeper-0123/" + UID
    for part in ("box/old", "box/old/innkeeper-0123", elsewhere):
        host.mkdir(tmp_path / "sys/fs/cgroup/memory" / part)
    memory = tmp_path / "sys/fs/cgroup/memory" / elsewhere
    host.process(41, f"2:memory:/{elsewhere}", "1:cpu:/")
    groups = host.detect()
    group = groups.adopt(UID, [41])
    assert group.places["memory"] == Place(1, memory)
    assert group.places["cpu"].path.parent == groups.bases["cpu"].path
    assert group.pids() == {41}
    host.end(41)
    run(_leave(groups))
    assert not memory.parent.exists()


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_the_next_daemon_moves_nobody_who_is_there_already(tmp_path: Path, kind: str) -> None:
    """The kernel would take its 20 ms for each VM all the same."""
    host = (
        FakeHost(tmp_path, v1=("cpu", "memory")) if kind == "v1" else FakeHost(tmp_path, v2=("cpu", "memory"))
    )
    host.detect().create(UID).add([41, 42])
    host.writes.clear()
    host.detect().adopt(UID, [41, 42, 43])
    assert {one for one in host.writes if one.startswith("cgroup.procs")} == {"cgroup.procs=43"}


async def _leave(groups: Cgroups) -> None:
    groups.leave(UID)
    await groups.close()


def test_groups_of_nobody_are_swept_and_others_stay(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v1=V1)
    groups = host.detect()
    for uid, pid in (("kept", 0), ("lived-in", 9), ("empty", 0)):
        group = groups.create(uid)
        if pid:
            group.add([pid])
    host.detect().sweep(["kept"])
    assert sorted(groups.leftover()) == ["kept", "lived-in"]


def test_daemons_with_other_state_do_not_meet(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v2=V2)
    one, two = host.detect("/one"), host.detect("/two")
    one.create(UID)
    assert two.leftover() == {}
    two.create(UID).try_remove()
    assert list(one.leftover()) == [UID]


def test_the_weight_of_all_together(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, v2=V2)
    groups = host.detect()
    groups.weigh(700)
    parent = groups.create(UID).paths[0].parent
    assert (parent / "cpu.weight").read_text() == "700"
    groups.weigh(800)
    assert (parent / "cpu.weight").read_text() == "800"


def test_how_to_get_them_is_said_in_one_line_by_what_the_host_has(tmp_path: Path) -> None:
    assert "systemd, which does not run" in how_to_get(privileged=False, root=tmp_path)
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    # systemd-run would succeed there, and give nothing
    assert "cgroup v2 alone; as root: inn serve" in how_to_get(privileged=False, root=tmp_path)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpu memory\n")
    assert "Delegate=yes" in how_to_get(privileged=False, root=tmp_path)
    assert "mount" in (told := how_to_get(privileged=True, root=tmp_path)) and "\n" not in told


def test_what_runs_beside_all_vms(tmp_path: Path) -> None:
    """Their own busy vCPUs are among those that run, and not beside them."""
    host = FakeHost(tmp_path, v1=V1)
    groups = host.detect()
    groups.create(UID)
    (tmp_path / "proc/stat").write_text("cpu  1 2 3\nprocs_running 20\n")
    assert groups.beside(2) == 2000
    assert groups.beside(2, ours=16) == 400
    assert groups.beside(2, ours=30) == 200
