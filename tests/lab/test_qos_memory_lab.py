"""Memory of a guest under cgroup v2, with swap: its limit and its swap policy, in the kernel's account.

Swap is compressed memory (zram), so that it is there whatever disk the lab has.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from innkeeper.units import MiB
from vms import labhost
from vms.daemon import Daemon
from vms.forks import Guest
from vms.waiting import eventually

# All of its RAM was in use once; some of it stays in use.
FILL: Final = """
mount -t tmpfs -o size=300m tmpfs /mnt
dd if=/dev/zero of=/mnt/all bs=1M count=80 2>/dev/null
head -c 4000000 /dev/urandom >/mnt/kept; sha256sum </mnt/kept
"""


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def swap() -> Iterator[None]:
    run("modprobe", "zram")
    zram = Path("/sys/block/zram0")
    (zram / "disksize").write_text(str(512 * MiB))
    run("mkswap", "/dev/zram0")
    run("swapon", "/dev/zram0")
    yield
    run("swapoff", "/dev/zram0")
    (zram / "reset").write_text("1")


@pytest.fixture(scope="module")
def web(plain_host: Daemon, swap: None) -> Iterator[Guest]:
    """It keeps what its balloon could take."""
    qos = {"memory": {"balloon": "never"}}
    spec = {"image": "tiny", "networks": [], "memory": {"size": "192MiB"}, "qos": qos}
    plain_host.client.instances.create(spec, name="web", start=True, wait="ready")
    yield Guest(plain_host, "web")
    plain_host.client.instances.handle("web").remove(force=True)


def group_of(guest: Guest) -> Path:
    return labhost.cgroup_of(int(guest.daemon.status(guest.name)["pid"]))


def number(group: Path, name: str) -> int:
    return int((group / name).read_text())


def test_a_limit_is_lowered_by_swapping_out(plain_host: Daemon, web: Guest) -> None:
    done = web.instance.exec(["sh", "-ec", FILL], timeout_s=300)
    assert done.status == 0, done.stderr
    group = group_of(web)
    plain_host.inn("set", "web", "qos.memory.limit=135MiB").ok()
    eventually(lambda: (group / "memory.max").read_text() == f"{135 * MiB}\n", "the limit is in force", 60)
    assert 120 * MiB <= number(group, "memory.high") < 135 * MiB
    assert number(group, "memory.current") <= 135 * MiB
    assert number(group, "memory.swap.current") > 16 * MiB
    assert web.sh("sha256sum </mnt/kept") == done.stdout.decode().strip()


def test_a_swap_policy_is_in_the_group(plain_host: Daemon, web: Guest) -> None:
    group = group_of(web)
    for told, kept in (("never", "0"), ("16MiB", str(16 * MiB)), ("", "max")):
        plain_host.inn("set", "web", f"qos.memory.swap={told}").ok()
        assert (group / "memory.swap.max").read_text().strip() == kept
