"""The doctor reports whatever the host does: checks that hang, raise or find nothing."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from doctor_fakes import FakeRunner, context, look, put, refuse

from innkeeper.agent import probes
from innkeeper.agent.doctor import CHECKS, DoctorContext, Finding, examine
from innkeeper.agent.doctor.base import Check, run_checks
from innkeeper.agent.doctor.checks_tools import greeting_version
from innkeeper.drivers.cgroup import Cgroups
from innkeeper.drivers.run import Finished, SystemRunner, missing_program
from innkeeper.engine import kvm
from innkeeper.errors import CommandFailed, NotFound

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}}}\n'


# ---- nothing stops the doctor ----


def checks(**functions: Any) -> list[Check]:
    return [Check(name, function, 0.2) for name, function in functions.items()]


def good(where: DoctorContext) -> Finding:
    return Finding("good", "ok", "fine")


async def good_async(where: DoctorContext) -> Finding:
    await asyncio.sleep(0)
    return Finding("good_async", "ok", "fine")


async def sleeps(where: DoctorContext) -> Finding:
    await asyncio.sleep(600)
    raise AssertionError


async def ignores_cancellation(where: DoctorContext) -> Finding:
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            continue
    return Finding("late", "ok", "too late")


def blocks(where: DoctorContext) -> Finding:
    time.sleep(20)
    raise AssertionError


def raises(where: DoctorContext) -> Finding:
    raise ValueError("two\nlines")


async def raises_async(where: DoctorContext) -> Finding:
    raise KeyError


def stops(where: DoctorContext) -> Finding:
    raise StopIteration


def exits(where: DoctorContext) -> Finding:
    raise SystemExit(3)


def returns_nothing(where: DoctorContext) -> Any:
    return None


def test_checks_that_hang_or_raise_become_findings(tmp_path: Path) -> None:
    wanted = checks(
        good=good, blocks=blocks, sleeps=sleeps, raises=raises, raises_async=raises_async, stops=stops,
        exits=exits, returns_nothing=returns_nothing, ignores=ignores_cancellation, good_async=good_async,
    )  # fmt: skip
    begun = time.monotonic()
    found = asyncio.run(run_checks(context(tmp_path), wanted, cleanup_s=0.2))
    assert time.monotonic() - begun < 5, "asyncio.run waited for a thread that hangs"
    assert [one.name for one in found] == [one.name for one in wanted]
    verdicts = {one.name: (one.verdict, one.detail) for one in found}
    assert verdicts["good"] == verdicts["good_async"] == ("ok", "fine")
    for name in ("blocks", "sleeps", "ignores"):
        assert verdicts[name] == ("fail", "did not finish in 0.2 s")
    assert verdicts["raises"] == ("fail", "the check itself failed: two lines")
    assert verdicts["raises_async"] == ("fail", "the check itself failed: KeyError")
    for name in ("stops", "exits", "returns_nothing"):
        assert verdicts[name][0] == "fail"


def test_hanging_checks_run_side_by_side(tmp_path: Path) -> None:
    begun = time.monotonic()
    found = asyncio.run(run_checks(context(tmp_path), [Check(f"c{n}", blocks, 0.3) for n in range(20)]))
    assert time.monotonic() - begun < 3
    assert {one.verdict for one in found} == {"fail"}


def test_an_unknown_check_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nonsense"):
        asyncio.run(examine(context(tmp_path), {"nonsense"}))


def test_a_finding_has_stable_keys() -> None:
    keys = Finding("a", "ok", "b").to_dict().keys()
    assert {"name", "verdict", "detail", "repair", "fixable"} <= set(keys)
    json.dumps(Finding("a", "ok", "b").to_dict())


# ---- single checks ----


def test_a_missing_kvm_says_what_the_cpu_lacks(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "flags : fpu sse\n")
    finding = look("kvm", context(tmp_path))
    assert finding.verdict == "warn"
    assert "missing" in finding.detail and "svm" in finding.detail
    put(tmp_path, "proc/cpuinfo", "flags : fpu svm sse\n")
    finding = look("kvm", context(tmp_path))
    assert finding.repair.startswith("modprobe") and not finding.fixable
    put(tmp_path, "proc/sys/kernel/osrelease", "6.1\n")
    (tmp_path / "lib/modules/6.1").mkdir(parents=True)
    assert look("kvm", context(tmp_path, find=lambda name: f"/sbin/{name}")).fixable


def test_a_kvm_that_is_a_fifo_does_not_hang_the_doctor(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    os.mkfifo(tmp_path / "dev/kvm")
    finding = look("kvm", context(tmp_path, SystemRunner()))
    assert (finding.verdict, finding.fixable) == ("warn", False)
    assert "broken" in finding.detail


def test_without_permission_to_kvm_the_repair_is_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = 'print(\'{"step": "open", "errno": 13}\')'
    where = context(tmp_path, SystemRunner(), kvm_argv=[sys.executable, "-c", code])
    monkeypatch.setattr(kvm, "group_of", lambda found: "kvm")
    put(tmp_path, "dev/kvm")
    finding = look("kvm", where)
    assert finding.repair.startswith("usermod -aG kvm ")
    assert not finding.fixable


def test_a_kvm_of_root_alone_needs_more_than_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "dev/kvm")
    device = tmp_path / "dev/kvm"
    device.chmod(0o600)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    helps = f"chgrp kvm {device} && chmod 0660 {device} && usermod -aG kvm "
    assert look("kvm", context(tmp_path, SystemRunner())).repair.startswith(helps)
    finding = look("kvm-access", context(tmp_path, uid=1000))
    assert (finding.verdict, finding.repair) == ("warn", f"{helps}ada")
    monkeypatch.setattr(kvm, "group_of", lambda found: "virt")
    finding = look("kvm-access", context(tmp_path, uid=1000))
    assert finding.repair == "usermod -aG virt ada"


def test_access_to_kvm_is_explained(tmp_path: Path) -> None:
    assert "No such file" in look("kvm-access", context(tmp_path)).detail
    put(tmp_path, "dev/kvm")
    (tmp_path / "dev/kvm").chmod(0o600)
    finding = look("kvm-access", context(tmp_path))
    assert finding.repair == f"chgrp kvm {tmp_path}/dev/kvm && chmod 0660 {tmp_path}/dev/kvm"
    assert not finding.fixable, "a plain file is not given to a group"
    (tmp_path / "dev/kvm").chmod(0o666)
    assert look("kvm-access", context(tmp_path)).verdict == "ok"


@pytest.mark.parametrize(("free_kb", "verdict"), [(100_000, "fail"), (500_000, "warn"), (8_000_000, "ok")])
def test_memory(tmp_path: Path, free_kb: int, verdict: str) -> None:
    put(tmp_path, "proc/meminfo", f"MemTotal: 9000000 kB\nMemAvailable: {free_kb} kB\n")
    finding = look("memory", context(tmp_path))
    assert finding.verdict == verdict
    assert "of 8.6 GiB available" in finding.detail


def pools(root: Path, total: int, free: int) -> Path:
    folder = root / "sys/kernel/mm/hugepages/hugepages-2048kB"
    put(root, "proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    put(folder, "nr_hugepages", str(total))
    put(folder, "free_hugepages", str(free))
    return folder / "nr_hugepages"


def test_a_huge_page_is_taken_and_given_back(tmp_path: Path) -> None:
    counter = pools(tmp_path, 3, 0)
    assert "one can be reserved" in look("hugepages", context(tmp_path)).detail
    assert counter.read_text() == "3"
    counter.unlink()
    counter.mkdir()
    # An ordinary user only reads.
    assert look("hugepages", context(tmp_path, uid=1000)).verdict == "ok"
    assert "none can be reserved" in look("hugepages", context(tmp_path)).detail


def test_huge_pages_that_are_free_are_left_alone(tmp_path: Path) -> None:
    counter = pools(tmp_path, 3, 2)
    counter.chmod(0o444)
    before = counter.stat().st_mtime_ns
    assert look("hugepages", context(tmp_path)).detail == "2.0 MiB: 2 of 3 free"
    assert counter.stat().st_mtime_ns == before


def test_ksm_and_thp_that_are_off_are_left_off(tmp_path: Path) -> None:
    put(tmp_path, "sys/kernel/mm/ksm/run", "0\n")
    put(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n")
    for name in ("ksm", "thp"):
        finding = look(name, context(tmp_path))
        assert (finding.verdict, finding.fixable) == ("info", False)
        assert finding.repair.startswith(("echo ", "inn host set ksm="))


def qemu_answers(machines: bytes, greeting: bytes = GREETING) -> dict[str, Any]:
    return {"qemu-system-x86_64": lambda argv: machines if "help" in argv else greeting}


def test_qemu(tmp_path: Path) -> None:
    def seen(answers: dict[str, Any], found: bool = True) -> Finding:
        return look("qemu", context(tmp_path, FakeRunner(answers), find=lambda name: name if found else None))

    listed = b"Supported machines are:\npc   x (alias of pc-i440fx-7.2)\nq35  y\nmicrovm z\n"
    assert seen(qemu_answers(listed)).detail == (
        "QEMU 7.2.22 starts and answers; 3 machine types (q35, pc = pc-i440fx-7.2, microvm)"
    )
    assert seen(qemu_answers(b"q35  y\n")).verdict == "fail"
    assert seen(qemu_answers(listed, b"hello\n")).detail == "started, but gave no QMP greeting"
    assert seen({"qemu-system-x86_64": CommandFailed("it crashed")}).detail == "it crashed"
    absent = seen({}, found=False)
    assert (absent.verdict, absent.packages, absent.fixable) == ("fail", ("qemu-system-x86",), True)
    assert absent.repair == "apt-get install -y qemu-system-x86"


@pytest.mark.parametrize("text", ["", "[]", "3", '{"QMP": 1}', '{"QMP": {"version": {"qemu": {}}}}', "{"])
def test_a_bad_greeting_has_no_version(text: str) -> None:
    assert greeting_version(text) == ""


def test_the_packages_agree_with_the_runner(tmp_path: Path) -> None:
    """Both tell a user what to install; they must not differ."""
    for name in ("qemu", "qemu-img", "passt", "image-tools"):
        finding = look(name, context(tmp_path))
        programs = finding.detail.removeprefix("not installed: ").split(" (")[0].split(", ")
        hints = [missing_program(program).hint for program in programs]
        assert [hint.split()[-1] for hint in hints] == list(finding.packages)


def test_passt_that_ends_at_once_is_reported_with_its_reason(tmp_path: Path) -> None:
    class Complaining(FakeRunner):
        async def run(self, argv: Sequence[str], **options: Any) -> Finished:
            noise = b"No routable interface\nFailed to send 31 bytes to syslog\n"
            return Finished(tuple(argv), 1, b"", noise)

    finding = look("passt", context(tmp_path, Complaining(), find=lambda name: name))
    assert finding.detail == "does not serve: No routable interface"
    hung = FakeRunner({"passt": CommandFailed("passt did not finish within 8 s")})
    assert look("passt", context(tmp_path, hung, find=lambda name: name)).verdict == "warn"


@pytest.mark.parametrize(
    ("name", "probe", "number", "verdict", "word"),
    [
        ("tun", "try_tap", errno.EPERM, "info", "CAP_NET_ADMIN"),
        ("tun", "try_tap", errno.ENOENT, "warn", "there is no"),
        ("tun", "try_tap", errno.ENODEV, "warn", "No such device"),
        ("bridge", "add_bridge", errno.EPERM, "info", "passt"),
        ("bridge", "add_bridge", errno.ENOPKG, "warn", "Package not installed"),
        ("nftables", "nf_tables_generation", errno.EPERM, "info", "needs root"),
        ("nftables", "nf_tables_generation", errno.EINVAL, "warn", "no NAT"),
        ("vhost-net", "vhost_features", errno.ENOENT, "info", "QEMU moves"),
        ("io-uring", "try_io_uring", errno.ENOSYS, "info", "threads instead"),
    ],
)
def test_what_the_kernel_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    probe: str,
    number: int,
    verdict: str,
    word: str,
) -> None:
    monkeypatch.setattr(probes, probe, refuse(number))
    finding = look(name, context(tmp_path))
    assert finding.verdict == verdict
    assert word in finding.detail


def test_cgroups_are_made_and_removed(tmp_path: Path) -> None:
    put(tmp_path, "proc/mounts", "cgroup2 /cg cgroup2 rw 0 0\n")
    put(tmp_path, "cg/cgroup.controllers", "cpu cpuset memory pids io\n")
    finding = look("cgroups", context(tmp_path))
    assert (finding.verdict, finding.detail) == ("ok", "v2; usable: cpu, cpuset, io, memory, pids")
    assert [path.name for path in (tmp_path / "cg").iterdir()] == ["cgroup.controllers"]
    put(tmp_path, "cg/cgroup.controllers", "cpu memory pids\n")
    finding = look("cgroups", context(tmp_path))
    assert "lacks cpuset, io" in finding.detail
    assert finding.repair == f"echo '+cpuset +io' > {tmp_path}/cg/cgroup.subtree_control"
    assert look("cgroups", context(tmp_path / "none")).verdict == "warn"


def test_an_ordinary_user_needs_ids_and_a_session(tmp_path: Path) -> None:
    where = context(tmp_path, uid=4321)
    put(tmp_path, "etc/subuid", "bob:1:65536\nada:100000:1000\n")
    finding = look("subuid", where)
    assert (finding.verdict, finding.detail[:32]) == ("warn", "1000 subordinate users and 0 gro")
    for name in ("subuid", "subgid"):
        put(tmp_path, f"etc/{name}", "ada:100000:65536\n")
    assert look("subuid", where).verdict == "ok"
    assert "XDG_RUNTIME_DIR is not set" in look("session", where).detail
    elsewhere = context(tmp_path, uid=4321, environ={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert "not yours" in look("session", elsewhere).detail
    mine = context(
        tmp_path, uid=tmp_path.stat().st_uid or 1, environ={"XDG_RUNTIME_DIR": str(tmp_path / "x")}
    )
    assert "No such file" in look("session", mine).detail


def test_the_service(tmp_path: Path) -> None:
    assert "inn serve" in look("service", context(tmp_path)).detail
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert "not installed" in look("service", context(tmp_path)).detail
    put(tmp_path, "etc/systemd/system/innkeeper.service")
    assert look("service", context(tmp_path)).repair == "systemctl enable --now innkeeper.service"
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "innkeeper.service").symlink_to("../innkeeper.service")
    assert look("service", context(tmp_path)).verdict == "ok"


def test_no_check_leaves_anything_in_a_bare_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check on a host where nothing is there: a finding each, no exception among them."""
    for name in ("try_tap", "add_bridge", "nf_tables_generation", "vhost_features"):
        monkeypatch.setattr(probes, name, refuse(errno.ENODEV))
    for uid in (0, 1000):
        found = asyncio.run(examine(context(tmp_path, uid=uid)))
        assert [one.name for one in found] == list(CHECKS)
        assert not [one for one in found if "the check itself" in one.detail]
        assert list(tmp_path.iterdir()) == []


# ---- quality of service ----


def test_what_of_qos_can_be_kept(tmp_path: Path) -> None:
    assert look("qos", context(tmp_path)).verdict == "info"
    works = Cgroups({"cpu": "", "memory": "", "io": ""})
    assert look("qos", context(tmp_path, cgroups=works)).verdict == "ok"
    partly = Cgroups({"cpu": "it was not delegated to /x", "memory": "", "io": ""})
    found = look("qos", context(tmp_path, cgroups=partly, uid=1000))
    assert found.verdict == "info"
    assert found.detail.startswith("kept: memory, limits of disks; not CPU time: it was not delegated to /x;")
    assert "; not shares of disks: " in found.detail
    assert "systemd, which does not run here" in found.repair  # nor is it told to run systemd-run then
    assert look("qos", context(tmp_path, cgroups=Cgroups())).verdict == "warn"
