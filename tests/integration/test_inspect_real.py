"""What the inspector says of real guests, beside what QEMU and the kernel say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from innkeeper.client.instance import Instance
from vms import forks, monitor
from vms.bootables import GREETING
from vms.cli import User
from vms.daemon import Daemon, stopped_process
from vms.openapi import Api
from vms.pagers import PAGERS, TEXT, Pager
from vms.translations import PAGE, compare_address, compare_all, compare_frame, number, paging_state
from vms.waiting import eventually

pytestmark = pytest.mark.vm
Fresh = Callable[..., Daemon]
Spec = Callable[..., dict[str, Any]]


def vm_of(daemon: Daemon, name: str) -> Instance:
    return daemon.client.instances.handle(name)


# -- against QEMU's own answers --------------------------------------------------------------------


def test_every_translation_is_as_qemu_says(fresh: Fresh) -> None:
    """A paused Linux: each line of `info tlb`, the rights of `info mem`, and addresses by gva2gpa and
    gpa2hva. The next daemon finds the VM as it is."""
    daemon = fresh(images=True)
    daemon.client.instances.create({"image": "tiny"}, name="web", start=True, wait="ready")
    web = vm_of(daemon, "web")
    web.pause()
    cpu = web.inspect_cpu()["cpus"][0]
    assert web.inspect_cpu()["paused"] and cpu["summary"]["mode"] == "long"
    rip = web.inspect_memory("rip")
    stack = web.inspect_memory("rsp")
    fork_map = web.inspect_memory()
    qmp = daemon.paths.runtime(daemon.show("web")["uid"]).qmp
    pid = daemon.show("web")["pid"]
    assert daemon.stop() == 0
    with monitor.connected(qmp) as qemu:
        for found in (rip, stack):
            compare_address(qemu, found)
        compare_all(qemu, paging_state(cpu["summary"], 40), pid, fork_map)
        line = qemu.human(f"xp /16xb {rip['physical']}")
        told = bytes(int(word, 16) for part in line.splitlines() for word in part.split(":")[1].split())
        assert bytes.fromhex(rip["content"]) == told
    daemon.start()
    again = vm_of(daemon, "web").inspect_memory("rip")
    assert (again["physical"], again["host"]["address"]) == (rip["physical"], rip["host"]["address"])
    compare_frame(pid, again)


@pytest.mark.parametrize("pager", PAGERS.values(), ids=list(PAGERS))
def test_every_mode_of_paging(daemon: Daemon, small: Spec, tmp_path: Path, pager: Pager) -> None:
    """A guest whose tables are known, byte for byte."""
    disk = pager.disk(tmp_path / "pager.img")
    spec = small() | {"disks": [{"name": "root", "copy_of": str(disk)}]}
    daemon.client.instances.create(spec, name="pager", start=True, wait="running")
    try:
        vm = vm_of(daemon, "pager")
        eventually(lambda: TEXT.encode() in b"".join(vm.logs()), "it turned paging on", 20.0, every_s=0.05)
        for virtual, (physical, size, writable) in pager.maps.items():
            found = vm.inspect_memory(virtual)
            assert (found["walk"]["paging"], found["walk"]["end"]) == (pager.paging, "mapped"), found["walk"]
            page = found["walk"]["page"]
            assert number(found["physical"]) == physical and page["bytes"] == size
            assert page["writable"] is writable and page["executable"]
            assert found["composed"]["shadow"]["bytes"] == PAGE and found["composed"]["used"] == "softmmu"
        for virtual, level in pager.misses.items():
            missed = vm.inspect_memory(virtual)
            assert (missed["walk"]["end"], missed["walk"]["level"]) == ("not-present", level)
            assert missed["physical"] is None and missed["host"] is None
        here = vm.inspect_memory("rip")
        assert here["cpu"]["halted"] and 0x7C00 <= number(here["physical"]) < 0x7E00
        assert vm.inspect_memory("rsp")["virtual"] is not None
    finally:
        vm_of(daemon, "pager").remove(force=True)


def test_a_guest_in_real_mode(daemon: Daemon, small: Spec) -> None:
    daemon.client.instances.create(small(), name="real", start=True, wait="running")
    try:
        vm = vm_of(daemon, "real")
        eventually(lambda: GREETING.encode() in b"".join(vm.logs()), "it halts", 20.0, every_s=0.05)
        (cpu,) = vm.inspect_cpu()["cpus"]
        assert (cpu["summary"]["mode"], cpu["summary"]["paging"], cpu["summary"]["halted"]) == (
            "real", "off", True,
        )  # fmt: skip
        found = vm.inspect_memory("rip")
        assert found["walk"]["steps"] == [] and found["walk"]["end"] == "mapped"
        assert found["physical"] == found["virtual"] and 0x7C00 <= number(found["virtual"]) < 0x7E00
        assert found["content"].startswith("eb fd"), "the jump back to hlt"
        text = daemon.inn("inspect", "memory", "real", "rip").ok().out
        assert "paging is off: the address is physical" in text
        beyond = vm.inspect_memory("0x100000000")
        assert beyond["walk"]["end"] == "not-canonical" and "32 bits" in beyond["walk"]["detail"]
        sector = vm.inspect_memory("7c00", physical=True)
        assert sector["content"].startswith("fa 31 c0 8e d8") and sector["slot"]["name"] == "ram0"
        assert vm.inspect_disk()["disks"][0]["reads"]["requests"] >= 1, "the firmware read the sector"
        assert vm.inspect_net()["nics"] == []
    finally:
        vm_of(daemon, "real").remove(force=True)


# -- forks -----------------------------------------------------------------------------------------


def test_a_fork_has_copies_of_what_it_wrote(daemon: Daemon) -> None:
    """One of two writes 16 MiB: there those pages are private; its sibling has them shared as before."""
    daemon.client.instances.create({"image": "tiny", "networks": []}, name="top", start=True, wait="ready")
    before = vm_of(daemon, "top").inspect_memory()["totals"]
    assert before["own"] == before["present"] > 32 << 20 and before["shared"] == before["private"] == 0
    vm_of(daemon, "top").fork(count=2, name="top-{}")
    writer, sibling = forks.Guest(daemon, "top-1"), forks.Guest(daemon, "top-2")
    try:
        start = writer.instance.inspect_memory()
        assert "top-2" in start["shared_with"]  # and top, until it has RAM of its own again
        assert start["totals"]["shared"] > start["totals"]["private"] > 0 == start["totals"]["own"]
        writer.sh("head -c 16777216 /dev/urandom >/memory")
        ours, theirs = writer.instance.inspect_memory(), sibling.instance.inspect_memory()
        grown = ours["totals"]["private"] - start["totals"]["private"]
        assert grown >= 16 << 20
        assert theirs["totals"]["private"] < ours["totals"]["private"] - (12 << 20)
        assert sum(run["bytes"] for run in ours["runs"]) == ours["totals"]["bytes"] == 256 << 20
        page = _private_here_shared_there(ours, theirs)
        copied = writer.instance.inspect_memory(page, physical=True)
        common = sibling.instance.inspect_memory(page, physical=True)
        assert (copied["host"]["state"], common["host"]["state"]) == ("private", "shared")
        assert copied["composed"]["nested"]["writable"] and not common["composed"]["nested"]["writable"]
        text = daemon.inn("inspect", "memory", "top-1").ok().out
        assert "top-2" in text and "copied from there" in text
        layers = writer.instance.inspect_disk()["disks"]
        assert layers == []
    finally:
        for name in ("top", "top-1", "top-2"):
            vm_of(daemon, name).remove(force=True)


def _private_here_shared_there(ours: dict[str, Any], theirs: dict[str, Any]) -> int:
    def pages(found: dict[str, Any], state: str) -> set[int]:
        return {
            number(run["first"]) + offset
            for run in found["runs"]
            if run["state"] == state
            for offset in range(0, run["bytes"], PAGE)
        }

    return min(pages(ours, "private") & pages(theirs, "shared"))


# -- what can go wrong, and who asks ---------------------------------------------------------------


def test_a_running_linux_by_every_verb(daemon: Daemon, shared_vm: str) -> None:
    """Over the API, as its document says; by the command line; and bad input."""
    api = Api(daemon.paths.api_socket)
    base = f"/v1/instances/{shared_vm}/inspect"
    for path in ("memory?numa=true", "memory/rip", "memory/cr3", "memory/dead0000", "cpu", "disk", "net"):
        status, found = api("GET", f"{base}/{path}")
        assert status == 200 and found["name"] == shared_vm, path
    inn = daemon.inn
    for words in (["memory"], ["memory", "--numa"], ["cpu"], ["disk"], ["net"]):
        assert inn("inspect", words[0], shared_vm, *words[1:]).ok().err == ""
    net = vm_of(daemon, shared_vm).inspect_net()["nics"][0]
    assert net["guest"]["interface"] == "eth0" and net["guest"]["counters"]["tx_packets"] > 0
    assert net["mac"] == net["mac"].lower() and net["connected"] in (True, None)
    unmapped = inn("inspect", "memory", shared_vm, "0x10").ok().out
    assert "the walk ended at" in unmapped and "not mapped" in unmapped
    assert "not canonical" in inn("inspect", "memory", shared_vm, "0x8000000000000000").ok().out
    inn("inspect", "memory", shared_vm, "hello").failed(2, "no address in hello", "rip")
    inn("inspect", "memory", shared_vm, "0x12:34").failed(2, "not an address", "rsp+0x10")
    inn("inspect", "memory", shared_vm, "rip", "--cpu", "9").failed(3, "no vCPU 9", "only 0")
    inn("inspect", "memory", shared_vm, "rip", "--physical").failed(2, "virtual")
    inn("inspect", "cpu", "nobody").failed(3, "nobody")


def test_stopped_and_hung(daemon: Daemon, small: Spec) -> None:
    daemon.client.instances.create(small(), name="stuck")
    inn = daemon.inn
    vm_of(daemon, "stuck").wait("stopped")
    for kind in ("memory", "cpu", "disk", "net"):
        inn("inspect", kind, "stuck").failed(4, "not running", "inn start stuck")
    vm_of(daemon, "stuck").start()
    try:
        with stopped_process(daemon.show("stuck")["pid"]):
            inn("inspect", "memory", "stuck").failed(1, "did not answer", "inn kill stuck")
        eventually(lambda: inn("inspect", "cpu", "stuck").status == 0, "it answers again", 10.0)
    finally:
        vm_of(daemon, "stuck").remove(force=True)


def test_an_ordinary_user_looks_into_a_vm_of_their_own(
    ordinary_user: User, fresh: Fresh, tmp_path: Path
) -> None:
    """Session mode: all but the numbers of frames, which the kernel keeps for root."""
    daemon = fresh(user=ordinary_user)
    pager = PAGERS["4-level"]
    disk = daemon.state / "disk.img"
    disk.write_bytes(pager.disk(tmp_path / "disk.img").read_bytes())
    disk.chmod(0o644)
    daemon.inn("run", disk, "-d", "--memory", "16MiB", "--name", "mine").ok()
    eventually(lambda: TEXT in daemon.inn("logs", "mine").out, "it boots", 20.0)
    virtual = 0x7C00
    found = daemon.inn("inspect", "memory", "mine", hex(virtual), "--json").ok().json
    assert number(found["physical"]) == virtual and len(found["walk"]["steps"]) == 3
    assert found["host"]["physical"] is None and "root" in found["host"]["hidden"]
    assert found["walk"]["steps"][0]["host"]["state"] == "own"
    assert (
        "the kernel shows page frames to root only" in daemon.inn("inspect", "memory", "mine", "rip").ok().out
    )
    totals = daemon.inn("inspect", "memory", "mine", "--json").ok().json["totals"]
    assert 0 < totals["own"] == totals["present"] < totals["bytes"] == 16 << 20
