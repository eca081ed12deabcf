"""Guests that are forked: what they have in memory and on disk, and what forks leave behind on the host."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from innkeeper.client.instance import Instance
from vms import traces
from vms.daemon import Daemon
from vms.waiting import eventually

SPEC: dict[str, Any] = {"image": "tiny", "disks": [{"name": "data", "size": "64MiB"}]}
# The root file system of `tiny` is in memory: what lies there is in the guest's RAM and nowhere else.
MEMORY, DISK = "/memory", "/disk"
_SET_UP = f"mkdir -p {MEMORY} {DISK} && /bin/mke2fs -q -t ext4 /dev/vda && mount /dev/vda {DISK}"
_WRITE = f"""
head -c 200000 /dev/urandom >{MEMORY}/$1
cp {MEMORY}/$1 {DISK}/$1 && sync && echo 3 >/proc/sys/vm/drop_caches
"""


class Guest:
    """A ready instance of `tiny` with a data disk."""

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.daemon, self.name = daemon, name

    @property
    def instance(self) -> Instance:
        return self.daemon.client.instances.handle(self.name)

    def sh(self, script: str, *words: str) -> str:
        done = self.instance.exec(["sh", "-ec", script, "sh", *words], timeout_s=60)
        assert done.status == 0, f"in {self.name}: {script}: {done.stderr.decode(errors='replace')}"
        return done.stdout.decode().strip()

    def write(self, mark: str) -> None:
        """The same random bytes in memory and, past every cache, on disk."""
        self.sh(_WRITE, mark)

    def sums(self) -> dict[str, str]:
        """Checksums by path of all that was written."""
        lines = self.sh(f"cd / && sha256sum {MEMORY}/* {DISK}/[!l]* 2>/dev/null || true").splitlines()
        return {path: digest for digest, path in map(str.split, lines)}

    def check(self, *marks: str) -> None:
        """It has what was written under `marks`, in memory as on disk, and nothing else; its disk works."""
        sums = self.sums()
        expected = {f"{place}/{mark}" for place in (MEMORY, DISK) for mark in marks}
        assert set(sums) == expected, f"{self.name} has {sorted(sums)}"
        for mark in marks:
            assert sums[f"{MEMORY}/{mark}"] == sums[f"{DISK}/{mark}"], f"{mark} differs in {self.name}"
        assert self.sh("dmesg | grep -ci 'i/o error\\|ext4-fs error' || true") == "0"

    def boot_id(self) -> str:
        return self.sh("cat /proc/sys/kernel/random/boot_id")

    def remove(self) -> None:
        self.instance.remove(force=True)


class Parent(Guest):
    """Lasts while copies of it come and go: it knows what it must have, and that it was not booted anew."""

    def __init__(self, daemon: Daemon, name: str = "parent", **spec: Any) -> None:
        super().__init__(daemon, name)
        boot(daemon, name, **spec)
        self.boot = self.boot_id()
        self.marks: tuple[str, ...] = ()

    def note(self, mark: str) -> None:
        self.write(mark)
        self.marks = (*self.marks, mark)

    def check_all(self) -> None:
        assert self.boot_id() == self.boot, "it was booted anew"
        self.check(*self.marks)


def boot(daemon: Daemon, name: str, **spec: Any) -> Guest:
    daemon.client.instances.create(SPEC | spec, name=name, start=True, wait="ready")
    guest = Guest(daemon, name)
    guest.sh(_SET_UP)
    return guest


def chain(daemon: Daemon, name: str, disk: str = "data") -> list[Path]:
    """The files of a disk, top first."""
    noted = json.loads((daemon.paths.instance(daemon.show(name)["uid"]).chains).read_text())
    return [Path(layer["path"]) for layer in noted[disk]]


def remains(daemon: Daemon) -> list[str]:
    """What no instance accounts for: layers, overlays, moments, runtime directories, processes, RAM."""
    vms = [daemon.show(name) for name in daemon.names()]
    running = {vm["uid"]: vm for vm in vms if vm["state"] in ("running", "paused")}
    named: set[str] = set()
    for vm in vms:
        for layers in json.loads(daemon.paths.instance(vm["uid"]).chains.read_text()).values():
            named |= {layer["path"] for layer in layers}
    paths = daemon.paths
    files = [*paths.layers.iterdir(), *paths.instances.glob("*/*.qcow2"), *paths.instances.glob("*/*.tmp")]
    found = [f"file {path}" for path in files if str(path) not in named]
    found += [f"moment {path}" for path in paths.moments.iterdir()]
    found += [f"missing {path}" for path in named if not Path(path).exists()]
    wanted_dirs = {paths.runtime(uid).directory.name for uid in running}
    there = {path.name for path in paths.machines.iterdir()}
    found += [f"runtime directory {name}" for name in there ^ wanted_dirs]
    found += [
        f"instance directory {name}" for name in set(os.listdir(paths.instances)) ^ {vm["uid"] for vm in vms}
    ]
    qemus = daemon.qemus()
    if qemus != {uid: vm["pid"] for uid, vm in running.items()}:
        found.append(f"QEMUs {qemus}")
    links = sum(len(vm["spec"]["networks"]) for vm in running.values())
    if len(daemon.helpers()) != len(running) + links:
        found.append(f"{len(daemon.helpers())} processes for {len(running)} VMs with {links} NICs")
    held = [name for name in traces.descriptor_names(daemon.pid) if "innkeeper-ram" in name]
    if len(held) > len(running):
        found.append(f"the daemon holds {len(held)} RAM files")
    return found


def assert_nothing_remains(daemon: Daemon, deadline_s: float = 15.0) -> None:
    eventually(
        lambda: not remains(daemon), f"nothing is left over, now {remains(daemon)}", deadline_s, every_s=0.1
    )
