"""KVM for real, in the short form that every run of the suite has room for: a tiny guest is a host of VMs.

Its CPU is emulated and has SVM, so the kernel in it has a KVM that runs guests on their own page tables. The
long form, with two NUMA nodes, cgroups and all the rest, is `make lab`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from innkeeper.client.instance import Instance
from vms import nesteddisk, templates
from vms.daemon import Daemon

pytestmark = pytest.mark.vm

SPEC = {
    "image": "tiny",
    "cpu": {"count": 2},
    "memory": {"size": "1536MiB"},
    "machine": {"accelerator": "tcg"},
    "networks": [],
}
HERE = "/host"


class Nested:
    """Commands in the root of the nested host."""

    def __init__(self, vm: Instance) -> None:
        self.vm = vm

    def __call__(self, *argv: str) -> str:
        done = self.vm.exec(["chroot", HERE, *argv], env=nesteddisk.ENVIRONMENT, timeout_s=150)
        assert done.status == 0, f"{argv}: {done.stderr.decode(errors='replace')}"
        return done.stdout.decode().strip()

    def json(self, *argv: str) -> Any:
        return json.loads(self("inn", *argv, "--json"))

    def outside(self, script: str) -> None:
        done = self.vm.exec(["sh", "-ec", script], timeout_s=150)
        assert done.status == 0, done.stderr

    def serve(self) -> None:
        """Its daemon, until it listens: an emulated CPU takes 10 s to load it, and several times as long on a
        busy machine, where a command that starts one by itself would have given up."""
        serving = f"chroot {HERE} inn serve </dev/null >/serve.log 2>&1 &"
        assert self.vm.exec(["sh", "-c", serving], env=nesteddisk.ENVIRONMENT).status == 0
        listening = f"[ -S {HERE}{nesteddisk.STATE}/run/api.sock ]"
        give_up = "[ $((i+=1)) -lt 280 ] || { cat /serve.log >&2; exit 1; }"
        self.outside(f"i=0; until {listening}; do {give_up}; usleep 500000; done")


@pytest.fixture
def nested(fresh: Callable[..., Daemon], tiny_image: Path, tmp_path: Path) -> Iterator[Nested]:
    disk = tmp_path / "host.ext4"
    nesteddisk.build(disk, tiny_image, templates.cache_directory())
    daemon = fresh(images=True)
    spec = {**SPEC, "disks": [{"name": "host", "path": str(disk)}]}
    vm = daemon.client.instances.create(spec, name="host", start=True, wait="ready")
    host = Nested(vm)
    host.outside(f"mkdir {HERE} && mount -t ext4 /dev/vda {HERE} && sh {HERE}/up")
    host.serve()
    yield host
    disk.unlink()  # 400 MB that pytest would keep


def test_a_guest_boots_and_forks_under_kvm(nested: Nested) -> None:
    facts = nested.json("host", "show")["facts"]
    assert (facts["kvm"], facts["paging"]) == ("hardware", "npt"), facts
    nested("inn", "run", "tiny", "--name", "one", "--network", "none", "-d")
    said = nested("inn", "exec", "one", "--", "sh", "-c", "echo from before >/mark; dmesg")
    assert "Hypervisor detected: KVM" in said
    nested("inn", "fork", "one", "--name", "two")
    nested("inn", "exec", "one", "--", "sh", "-c", "echo changed >/mark")
    assert nested("inn", "exec", "two", "--", "cat", "/mark") == "from before"
    seen = {vm["name"]: (vm["state"], vm["accelerator"]) for vm in nested.json("list")}
    assert seen == dict.fromkeys(("one", "two"), ("running", "kvm"))
    nested("inn", "rm", "--force", "one", "two")
