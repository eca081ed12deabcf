"""Memory of real guests between reservation and limit, in the kernel's account, and an end by the kernel."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from innkeeper.drivers.cgroup import Cgroups, Group
from innkeeper.errors import SpecError
from innkeeper.units import MiB
from vms import codemaker, monitor
from vms.daemon import Daemon
from vms.forks import Guest
from vms.waiting import eventually

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs control groups, as root has them"),
]
FreshDaemon = Callable[..., Daemon]
VM: dict[str, Any] = {"image": "tiny", "networks": [], "memory": {"size": "128MiB"}}
LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}


def group_of(daemon: Daemon, name: str) -> Group:
    return Cgroups.detect(daemon.paths.state).group_of(daemon.show(name)["uid"])


def test_limits_and_reservations_change_on_a_running_vm(fresh: FreshDaemon) -> None:
    daemon = fresh(images=True)
    qos = {"memory": {"limit": "400MiB", "reservation": "64MiB"}}
    vm = daemon.client.instances.create(VM | {"qos": qos}, name="web", start=True, wait="running")
    group = group_of(daemon, "web")
    version = group.version("memory")
    assert version is not None
    assert group.read("memory", LIMIT[version]) == f"{400 * MiB}\n"
    kept = "memory.min" if version == 2 else "memory.swappiness"
    assert group.read("memory", kept) == ("67108864\n" if version == 2 else "0\n")
    said = vm.qos()["memory"]
    assert said["kept_by"] == ("min" if version == 2 else "not-swapped") and said["used"] > 0
    daemon.inn("set", "web", "qos.memory.limit=500MiB", "qos.memory.swap=16MiB").ok()
    assert group.read("memory", LIMIT[version]) == f"{500 * MiB}\n"
    shown = daemon.inn("show", "web").ok().out
    assert "64.0 MiB reserved" in shown and "at most 500 MiB" in shown and "16.0 MiB swapped" in shown
    daemon.inn("set", "web", "qos.memory.limit=", "qos.memory.swap=", "qos.memory.reservation=").ok()
    free = "max" if version == 2 else str((1 << 63) // os.sysconf("SC_PAGE_SIZE") * 4096 - 4096)
    assert (group.read("memory", LIMIT[version]) or "").strip() == free
    assert group.read("memory", kept) != ("67108864\n" if version == 2 else "0\n")
    for wrong in ("limit=100MiB", "reservation=1GiB", "swap=sometimes", "shares=0"):
        refused = daemon.inn("set", "web", f"qos.memory.{wrong}")
        assert refused.status in (2, 4) and refused.err.startswith("inn: "), refused.err
    if version == 1:
        refused = daemon.inn("set", "web", "qos.memory.swap=16MiB")
        assert refused.status == 4 and "qos.memory.limit" in refused.err
    with pytest.raises(SpecError, match="would end it"):
        vm.update({"qos": {"memory": {"limit": "80MiB"}}})


def test_an_end_at_the_limit_is_told(fresh: FreshDaemon) -> None:
    """Nothing can be swapped out, and no balloon gives anything: the guest takes more than it may."""
    daemon = fresh(images=True)
    qos = {"memory": {"limit": "130MiB", "swap": "never", "balloon": "never"}}
    vm = daemon.client.instances.create(VM | {"qos": qos}, name="greedy")
    ran = daemon.inn("start", "greedy")
    assert ran.status in (0, 1), ran.err

    def ended() -> dict[str, Any] | None:
        status = vm.refresh().data["status"]
        return dict(status) if status["ended"] else None

    # What it needs at boot may fit; all of its RAM does not.
    daemon.inn("exec", "greedy", "--", "sh", "-c", "mount -t tmpfs -o size=90m t /mnt; cat /dev/zero >/mnt/a")
    status = eventually(ended, "the kernel ended it", 60.0)
    assert status["ended"]["reason"] == "out-of-memory", status
    assert "raise qos.memory.limit" in status["note"]
    assert "out-of-memory" in daemon.inn("show", "greedy").ok().out
    daemon.inn("set", "greedy", "qos.memory.limit=").ok()
    daemon.inn("start", "greedy").ok()
    daemon.inn("wait", "greedy").ok()


def limit_of(daemon: Daemon, name: str) -> int:
    group = group_of(daemon, name)
    return int(group.read("memory", LIMIT[group.version("memory") or 0]) or 0)


def used_by(daemon: Daemon, name: str) -> int:
    return group_of(daemon, name).memory_bytes() or 0


def ram_file(daemon: Daemon, name: str) -> os.stat_result | None:
    """None while it is handed over."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{daemon.status(name)['pid']}/fd").iterdir():
            if "innkeeper-ram" in os.readlink(entry):
                return entry.stat()
    return None


def ram(daemon: Daemon, name: str) -> int:
    found = ram_file(daemon, name)
    return found.st_ino if found else 0


def backed(daemon: Daemon, name: str) -> int:
    found = ram_file(daemon, name)
    return found.st_blocks * 512 if found else 0


def thrown_away(daemon: Daemon, name: str) -> int:
    """How often QEMU has begun anew with its translated code; asked while no daemon has it."""
    uid = daemon.show(name)["uid"]
    daemon.kill()
    with monitor.connected(daemon.paths.runtime(uid).qmp) as hand:
        told = str(hand.execute("human-monitor-command", **{"command-line": "info jit"}))
    daemon.start()
    size = re.search(r"gen code size +\d+/(\d+)", told)
    assert size and 62 * MiB < int(size[1]) <= 64 * MiB, told
    count = re.search(r"TB flush count +(\d+)", told)
    assert count, told
    return int(count[1])


def test_a_guest_that_runs_much_code_stays_below_its_limit_and_so_do_copies(fresh: FreshDaemon) -> None:
    """Of these blocks QEMU makes 230 MiB of code, for which there are 64: it throws away what it has made."""
    limit, blocks = 264 * MiB, 400_000
    daemon = fresh(images=True)
    spec = VM | {"memory": {"size": "256MiB"}, "qos": {"memory": {"swap": "never"}}}
    daemon.client.instances.create(spec, name="web", start=True, wait="ready")
    guest = Guest(daemon, "web")
    guest.sh("mount -t tmpfs -o size=300m t /mnt && head -c 60000000 /dev/zero >/mnt/all; rm /mnt/all")
    assert daemon.inn("set", "web", "qos.memory.limit=264MiB").ok()
    eventually(lambda: limit_of(daemon, "web") == limit, "it is in force", 60.0, every_s=0.3)
    guest.sh(codemaker.script(blocks))
    assert used_by(daemon, "web") <= limit
    assert thrown_away(daemon, "web") >= 2

    # What copies share lies in the parent's account, and is let out of its limit.
    boot = guest.boot_id()
    guest.instance.fork(name="copy")
    copy = Guest(daemon, "copy")
    for one in (copy, guest):
        one.sh(codemaker.script(blocks))
    eventually(lambda: limit_of(daemon, "copy") == limit, "the copy's is in force", 10.0)
    assert used_by(daemon, "copy") < limit
    eventually(lambda: 0 != ram(daemon, "web") != ram(daemon, "copy"), "the parent has RAM of its own", 60.0)
    eventually(
        lambda: limit_of(daemon, "web") == limit + backed(daemon, "copy"), "the parent's is in force", 60.0
    )
    guest.sh(codemaker.script(blocks))
    assert guest.boot_id() == boot == copy.boot_id(), "nobody was ended, and started anew"
