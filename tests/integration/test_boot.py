"""One's own things: disks, kernels and ISOs, on every bus and machine that guests may know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_guest import decode_png

from vms import bootables
from vms.bootables import GREETING
from vms.cli import Inn
from vms.daemon import Daemon
from vms.waiting import eventually

pytestmark = pytest.mark.vm

SMALL = ("--memory", "16MiB", "--network", "none", "-d", "--name", "own")


@pytest.fixture
def own(daemon: Daemon) -> Iterator[str]:
    yield "own"
    if "own" in daemon.names():
        daemon.client.instances.handle("own").remove(force=True)


@pytest.fixture(scope="module")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bootables.boot_iso(tmp_path_factory.mktemp("iso") / "boot, me.iso")


def _says(inn: Inn, text: str, deadline_s: float = 20.0) -> None:
    eventually(lambda: text in inn("logs", "own").ok().out, f"the guest says {text}", deadline_s, every_s=0.1)


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_a_disk_image_of_ones_own(inn: Inn, own: str, boot_disk: Path, machine: str, daemon: Daemon) -> None:
    before = boot_disk.read_bytes()
    assert inn("run", boot_disk, "--machine", machine, *SMALL).ok().out == "own\n"
    _says(inn, GREETING)
    assert boot_disk.read_bytes() == before
    assert daemon.show(own)["status"]["machine"].startswith("pc-q35-" if machine == "q35" else "pc-i440fx-")


@pytest.mark.parametrize("machine", ["q35", "pc"])
@pytest.mark.parametrize("bus", ["virtio", "scsi", "sata", "ide"])
def test_a_disk_boots_from_every_bus(
    inn: Inn, own: str, tmp_path: Path, bus: str, machine: str, daemon: Daemon
) -> None:
    disk = bootables.boot_disk(tmp_path / "in,place.img", text=f"FROM-{bus}")
    inn("run", "--disk", f"{disk},bus={bus}", "--machine", machine, *SMALL).ok()
    _says(inn, f"FROM-{bus}")


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_an_iso_boots_and_the_order_decides(
    inn: Inn, own: str, iso: Path, boot_disk: Path, machine: str
) -> None:
    inn("run", iso, "--machine", machine, *SMALL).ok()
    _says(inn, "INN-CDROM")
    inn("rm", "-f", own).ok()
    inn("run", boot_disk, "--cdrom", iso, "--boot", "cdrom,disk", "--machine", machine, *SMALL).ok()
    _says(inn, "INN-CDROM")
    inn("rm", "-f", own).ok()
    inn("run", boot_disk, "--cdrom", iso, "--boot", "disk,cdrom", "--machine", machine, *SMALL).ok()
    _says(inn, GREETING)


def test_a_new_disk_beside_an_installer(inn: Inn, own: str, iso: Path) -> None:
    """As people install: an empty disk first, so that the next boot is from it."""
    inn("run", iso, "--disk", "1GiB", "--boot", "disk,cdrom", *SMALL).ok()
    _says(inn, "INN-CDROM")
    assert [disk["name"] for disk in inn("show", own, "--json").ok().json["spec"]["disks"]] == [
        "cdrom",
        "disk1",
    ]


def test_a_kernel_of_ones_own(inn: Inn, own: str, tiny_image: Path) -> None:
    inn(
        "run", "--kernel", tiny_image / "kernel", "--initrd", tiny_image / "initrd",
        "--append", "console=ttyS0 panic=-1 inn.word=a,b", "-d", "--agent", "--name", own,
    ).ok()  # fmt: skip
    assert "inn.word=a,b" in inn("exec", own, "--", "cat", "/proc/cmdline").ok().out


def test_guests_that_know_nothing_of_virtio(inn: Inn, own: str) -> None:
    """IDE and SATA disks, e1000 and VGA on the old machine. (The cloud kernel has drivers for the first
    and the last only; SATA and SCSI boot above, by the firmware's drivers.)"""
    inn(
        "run", "tiny", "--machine", "pc", "--disk", "64MiB,bus=ide,name=old", "--network", "e1000",
        "--disk", "32MiB,bus=sata,name=newer", "--disk", "16MiB,bus=scsi,name=small", "-d", "--name", own,
    ).ok()  # fmt: skip
    script = "for disk in /sys/block/sd*; do echo disk $(($(cat $disk/size) / 2048)); done"
    eventually(
        lambda: set(inn("exec", own, "--", "sh", "-c", script).out.splitlines()) == {"disk 64", "disk 16"},
        "the IDE and the SCSI disk are there",
        20.0,
        every_s=0.2,
    )
    devices = inn("exec", own, "--", "sh", "-c", "cat /sys/bus/pci/devices/*/modalias").ok().out
    for device in ("v00008086d0000100E", "v00008086d00002922", "bc03sc00"):
        assert device in devices, "e1000, AHCI and VGA"


def test_a_virtio_disk_is_written_and_kept(inn: Inn, own: str, daemon: Daemon) -> None:
    inn("run", "tiny", "--disk", "64MiB", "-d", "--name", own).ok()
    inn("exec", own, "--", "sh", "-c", "echo kept >/dev/vda; sync").ok()
    inn("restart", own, "--wait", "ready").ok()
    assert inn("exec", own, "--", "head", "-n1", "/dev/vda").ok().out == "kept\n"
    assert inn("exec", own, "--", "cat", "/sys/block/vda/serial").ok().out.strip("\n\0") == "disk1"


def test_uefi_firmware_boots_and_shows_itself(inn: Inn, own: str, boot_disk: Path, tmp_path: Path) -> None:
    words = ["--memory", "128MiB", "--network", "none", "-d", "--name", own]
    answer = inn("run", boot_disk, "--firmware", "uefi", *words)
    if answer.status == 4 and "ovmf" in answer.err:
        pytest.skip("no UEFI firmware is installed")
    answer.ok()
    # The disk has no EFI system partition, so the firmware says that it cannot boot from it.
    _says(inn, "BdsDxe", 60.0)
    file = tmp_path / "screen.png"
    inn("screenshot", own, "-o", file).ok()
    assert decode_png(file.read_bytes())[2] > 1
    assert "pflash" in inn("show", own, "--argv").ok().out


def test_growing_the_root_disk(inn: Inn, own: str, boot_disk: Path, daemon: Daemon) -> None:
    import subprocess

    inn("run", boot_disk, "--root-size", "3GiB", *SMALL).ok()
    _says(inn, GREETING)
    disk = Path(daemon.show(own)["paths"]["state"]) / "root.qcow2"
    told = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", disk], capture_output=True, check=True
    ).stdout
    assert json.loads(told)["virtual-size"] == 3 << 30


def test_vnc_on_a_unix_socket(inn: Inn, own: str, boot_disk: Path, daemon: Daemon) -> None:
    import socket

    inn("run", boot_disk, "--vnc", "socket", *SMALL).ok()
    path = Path(daemon.show(own)["paths"]["run"]) / "vnc.sock"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        assert client.recv(12).startswith(b"RFB 003.")
