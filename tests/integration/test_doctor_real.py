"""The real doctor on this machine, whatever it is: sane findings, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

from innkeeper.agent.doctor import CHECKS, DoctorContext, Finding, examine
from innkeeper.agent.facts import gather
from innkeeper.drivers.run import SystemRunner
from innkeeper.engine import kvm
from innkeeper.paths import Paths


def traces() -> dict[str, object]:
    """What the checks make for a moment, by the names only this process uses, and our children."""
    mine = str(os.getpid())
    cgroups = Path("/sys/fs/cgroup")
    return {
        "interfaces": [
            name for name in os.listdir("/sys/class/net") if name.startswith("inn") and mine in name
        ],
        "cgroups": [str(path) for path in cgroups.glob(f"**/innkeeper-doctor-{mine}")],
        "folders": sorted(path.name for path in Path("/tmp").glob(f"innkeeper-doctor-{mine}-*")),
        "children": Path(f"/proc/self/task/{mine}/children").read_text().split(),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def huge_pages() -> list[str]:
    pools = Path("/sys/kernel/mm/hugepages").glob("*/nr_hugepages")
    return [path.read_text() for path in sorted(pools)]


def report(findings: list[Finding]) -> None:
    for one in findings:
        print(f"{one.name:16} {one.verdict:5} {one.detail}" + (f"  => {one.repair}" if one.repair else ""))


def test_the_doctor_tries_everything_and_leaves_nothing(tmp_path: Path) -> None:
    asyncio.run(examine(DoctorContext(SystemRunner(), tmp_path), {"clock"}))  # imports and threads settle
    before, pages = traces(), huge_pages()
    where = DoctorContext(SystemRunner(), tmp_path, kvm_cache=tmp_path / "kvm.json")
    begun = time.monotonic()
    findings = asyncio.run(examine(where))
    print(f"examine: {time.monotonic() - begun:.2f} s")
    report(findings)
    assert traces() == before
    until = time.monotonic() + 5
    while huge_pages() != pages and time.monotonic() < until:
        time.sleep(0.1)  # another program's page, come and gone
    assert huge_pages() == pages
    assert [one.name for one in findings] == list(CHECKS)
    assert not [one.detail for one in findings if "the check itself" in one.detail]
    assert all("\n" not in one.detail + one.repair for one in findings)
    (kvm_finding,) = (one for one in findings if one.name == "kvm")
    assert kvm_finding.detail.split(" ")[0].rstrip(":") in get_args(kvm.Kind)


def test_the_probe_and_the_facts_agree(tmp_path: Path) -> None:
    paths = Paths(state=tmp_path, run=tmp_path / "run")
    facts = asyncio.run(gather(SystemRunner(), paths))
    verdict = facts.accelerator
    print(verdict)
    assert verdict.kind in get_args(kvm.Kind)
    assert verdict.checked_boot_id == facts.boot_id
    if verdict.kind in ("hardware", "emulated"):
        assert verdict.api_version == kvm.STABLE_API_VERSION
        assert verdict.instructions_per_s > 0
        assert kvm.cached(paths.kvm_verdict) == verdict
    assert facts.memory_bytes > 0 and facts.cpus and facts.numa
    assert asyncio.run(gather(SystemRunner(), paths)).qemu == facts.qemu


def test_a_kvm_that_hangs_hangs_nothing_else(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
    where = DoctorContext(SystemRunner(), tmp_path, kvm_device="/dev/null", kvm_argv=argv)
    before = _children()
    begun = time.monotonic()
    findings = asyncio.run(examine(where))
    assert time.monotonic() - begun < 60
    verdicts = {one.name: one for one in findings}
    assert verdicts["kvm"].verdict == "warn"
    assert "did not come back" in verdicts["kvm"].detail
    assert verdicts["clock"].verdict in ("ok", "warn")
    assert _children() <= before


def _children() -> set[str]:
    """Of this process; daemons of other tests may be among them."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_gets_clear_text(tmp_path: Path) -> None:
    """The doctor in a process of user 65534, as in a session without any privilege."""
    code = (
        "import os, sys, asyncio, json; from pathlib import Path\n"
        "from innkeeper.drivers.run import SystemRunner\n"
        "from innkeeper.agent.doctor import DoctorContext, examine, fix\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "where = DoctorContext(SystemRunner(), Path('/nonexistent'), environ={})\n"
        "found = asyncio.run(examine(where)); fixed = asyncio.run(fix(found, where))\n"
        "print(json.dumps([[f.to_dict() for f in found], [f.to_dict() for f in fixed]]))"
    )
    done = asyncio.run(SystemRunner().run([sys.executable, "-c", code], deadline_s=100))
    found, fixed = json.loads(done.text)
    for one in found:
        print(f"{one['name']:16} {one['verdict']:5} {one['detail']}  => {one['repair']}")
    named = {one["name"]: one for one in found}
    assert "the check itself" not in done.text
    assert named["bridge"]["verdict"] == "info" and "CAP_NET_ADMIN" in named["bridge"]["detail"]
    assert named["tun"]["verdict"] == "info"
    assert all(one["detail"].startswith("needs root: ") and not one["done"] for one in fixed)
