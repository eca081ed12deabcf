"""The QEMU command lines of typical VMs, as golden files. Regenerate: INNKEEPER_REGENERATE=1 pytest
tests/golden, then read the diff."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from innkeeper.engine.base import DiskPlan, FirmwarePlan, KernelPlan, LaunchPlan, Layer, NicPlan
from innkeeper.engine.memory import DimmPlan, GuestNodePlan, MemoryPlan, RamPlan
from innkeeper.engine.qemu.argv import ByPath, build_argv, mac_address
from innkeeper.paths import RuntimeFiles

FILES = RuntimeFiles(Path("/run/innkeeper/vm/0123456789ab"))
STATE = Path("/var/lib/innkeeper/instances/u")
IMAGE = Path("/var/lib/innkeeper/images/abc")
UID = "01234567-89ab-4cde-8f01-23456789abcd"

TINY = LaunchPlan(
    uid=UID,
    name="web",
    epoch=1,
    binary="/usr/bin/qemu-system-x86_64",
    machine="pc-q35-7.2",
    accelerator="tcg",
    cpu_model="max",
    cpus=1,
    memory_bytes=256 << 20,
    nics=(NicPlan("virtio", mac_address(UID, 0), "passt"),),
    kernel=KernelPlan(IMAGE / "kernel", IMAGE / "initrd", "console=ttyS0 quiet"),
    console_log=STATE / "console.log",
    qemu_log=STATE / "qemu.log",
    balloon=True,
    translated_bytes=64 << 20,
)
ROOT = DiskPlan(
    "root", (Layer(STATE / "root.qcow2", "qcow2"), Layer(IMAGE / "disk.qcow2", "qcow2")), boot_index=0
)
DISK = replace(TINY, kernel=None, disks=(ROOT,), memory_bytes=1 << 30, cpus=2)
CDROM = DiskPlan("iso", (Layer(Path("/isos/a,b.iso"), "raw"),), bus="sata", media="cdrom", readonly=True)

PLANS: dict[str, LaunchPlan] = {
    "tiny": TINY,
    "tiny-kvm": replace(TINY, accelerator="kvm", cpu_model="host"),
    "reporting": replace(TINY, reporting=True),
    "no-balloon": replace(TINY, balloon=False),
    "iommu": replace(DISK, iommu="intel"),
    "no-network-no-display": replace(TINY, nics=(), vga="none"),
    "slirp-forward": replace(
        TINY, nics=(NicPlan("e1000", mac_address(UID, 0), "slirp", (("tcp", "127.0.0.1", 2222, 22),)),)
    ),
    "disk-overlay": DISK,
    "vcpus": replace(TINY, cpus=3, cpus_max=8),
    "vcpus-and-disks": replace(
        DISK,
        cpus=3,
        cpus_built=1,
        cpus_max=8,
        disks=(ROOT, DiskPlan("s", (Layer(Path("/dev/vg/lv"), "raw"),), bus="scsi", readonly=True)),
    ),
    "topology": replace(TINY, cpus=2, cpus_max=8, topology=(2, 2, 2)),
    "aarch64": replace(
        DISK,
        architecture="aarch64",
        binary="/usr/bin/qemu-system-aarch64",
        machine="virt-7.2",
        cpu_model="max,pauth-impdef=on",
        cpus_max=2,
        kernel=TINY.kernel,
        vga="virtio",
        disks=(replace(ROOT, boot_index=None), replace(CDROM)),
    ),
    "numa": replace(
        TINY,
        cpus=3,
        cpus_max=4,
        memory=MemoryPlan(
            ram=(
                RamPlan("ram0", 96 << 20, (0,), "bind"),
                RamPlan("ram1", 96 << 20, (0,), "preferred"),
                RamPlan("ram2", 64 << 20),
            ),
            nodes=(
                GuestNodePlan("ram0", (0, 1, 3), (10, 21, 31)),
                GuestNodePlan("ram1", (2,), (21, 10, 21)),
                GuestNodePlan("ram2", (), (31, 21, 10)),
            ),
        ),
    ),
    "numa-bound": replace(TINY, memory=MemoryPlan(ram=(RamPlan("ram0", 256 << 20, (0,), "preferred"),))),
    "prealloc": replace(TINY, memory=MemoryPlan(prealloc=True)),
    "memory-room": replace(TINY, memory=MemoryPlan(slots=6, step_bytes=128 << 20)),
    "memory-plugged": replace(
        TINY,
        memory=MemoryPlan(
            slots=6,
            step_bytes=128 << 20,
            dimms=(DimmPlan(0, 128 << 20, 4 << 30), DimmPlan(2, 128 << 20, (4 << 30) + (256 << 20))),
        ),
    ),
    "locked": replace(TINY, memory=MemoryPlan(locked=True)),
    "hugepages": replace(TINY, memory=MemoryPlan(page_bytes=2 << 20)),
    "uefi": replace(DISK, firmware=FirmwarePlan(Path("/ovmf/code.fd"), STATE / "vars.fd")),
    "legacy-pc": replace(
        DISK,
        machine="pc-i440fx-7.2",
        disks=(
            replace(ROOT, bus="ide"),
            DiskPlan("data", (Layer(STATE / "data.qcow2", "qcow2"),), bus="ide"),
            DiskPlan("more", (Layer(STATE / "more.qcow2", "qcow2"),), bus="sata"),
            replace(CDROM, boot_index=1),
        ),
        nics=(NicPlan("rtl8139", mac_address(UID, 0), "slirp", boot_index=2),),
        vnc="127.0.0.1:5901",
    ),
    "q35-mixed-buses": replace(
        DISK,
        disks=(
            replace(ROOT, bus="sata"),
            DiskPlan("old", (Layer(STATE / "old.qcow2", "qcow2"),), bus="ide"),
            DiskPlan("s", (Layer(Path("/dev/vg/lv"), "raw"),), bus="scsi", readonly=True),
            CDROM,
        ),
        vnc="socket",
        vga="virtio",
        paused=True,
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_argv_is_as_recorded(name: str) -> None:
    argv = build_argv(PLANS[name], FILES, ByPath(PLANS[name].memory.page_bytes))
    text = _readable(argv)
    golden = Path(__file__).parent / "argv" / f"{name}.txt"
    if os.environ.get("INNKEEPER_REGENERATE"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_every_golden_file_has_a_plan() -> None:
    recorded = {path.stem for path in (Path(__file__).parent / "argv").glob("*.txt")}
    assert recorded == set(PLANS)


def test_the_line_can_be_pasted() -> None:
    argv = build_argv(PLANS["q35-mixed-buses"], FILES, ByPath())
    assert shlex.split(shlex.join(argv)) == argv


def test_macs_are_stable_local_and_differ() -> None:
    macs = {mac_address(UID, index) for index in range(8)} | {mac_address("other", 0)}
    assert len(macs) == 9
    assert all(mac.startswith("52:54:00:") for mac in macs)
    assert mac_address(UID, 0) == mac_address(UID, 0)


def _readable(argv: list[str]) -> str:
    """One option a line."""
    lines = [argv[0]]
    for word in argv[1:]:
        if word.startswith("-") and not word.startswith("-1"):
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return "\n".join(lines) + "\n"
