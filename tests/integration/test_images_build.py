"""The images that the builders make, booted by QEMU driven by hand: does everything they promise work?"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from innkeeper.images.imagedir import kernel_name, load_manifest, verify

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

# Emulated `rep movsb` is slow: guests that are not told of it boot with less work.
CPU = "max,erms=off,fsrm=off"
OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
SEED = "#cloud-config\nhostname: seeded\nruncmd:\n - touch /run/seed-was-run\n"


class Guest:
    """One QEMU with its agent's and its monitor's socket."""

    def __init__(self, place: Path, *arguments: str, memory_mib: int = 256) -> None:
        self.serial = place / "serial.log"
        listeners = [self._listen(place / name) for name in ("agent", "monitor")]
        self.process = subprocess.Popen(
            [
                "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot",
                "-machine", "q35,accel=tcg", "-cpu", CPU, "-m", str(memory_mib),
                "-display", "none", "-serial", f"file:{self.serial}",
                "-chardev", f"socket,id=agent,path={place}/agent", "-device", "virtio-serial-pci",
                "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
                "-chardev", f"socket,id=monitor,path={place}/monitor", "-mon", "chardev=monitor,mode=control",
                *arguments,
            ]
        )  # fmt: skip
        self.agent, self.monitor = [listener.accept()[0] for listener in listeners]
        for listener in listeners:
            listener.close()
        self.monitor.settimeout(20)
        self.answers = self.monitor.makefile("rb")
        self.answers.readline()
        self.qmp("qmp_capabilities")

    @staticmethod
    def _listen(path: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(30)
        return listener

    def ask(self, command: str, deadline_s: float = 30, **arguments: Any) -> Any:
        """One command to the guest agent. It keeps what is sent before it runs."""
        self.tell(command, **arguments)
        self.agent.settimeout(deadline_s)
        answer = b""
        while not answer.endswith(b"\n"):
            chunk = self.agent.recv(65536)
            assert chunk, self.serial.read_text(errors="replace")[-2000:]
            answer += chunk
        found = json.loads(answer)
        assert "return" in found, found
        return found["return"]

    def tell(self, command: str, **arguments: Any) -> None:
        self.agent.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")

    def sh(self, script: str, deadline_s: float = 60) -> str:
        """Output of a shell script in the guest, which must succeed."""
        pid = self.ask("guest-exec", path="/bin/sh", arg=["-c", script], **{"capture-output": True})["pid"]
        end = time.monotonic() + deadline_s
        while not (state := self.ask("guest-exec-status", pid=pid))["exited"]:
            assert time.monotonic() < end, script
            time.sleep(0.05)
        output = base64.b64decode(state.get("out-data", "")).decode()
        assert state["exitcode"] == 0, (script, output, base64.b64decode(state.get("err-data", "")))
        return output.strip()

    def until(self, script: str, deadline_s: float = 60) -> None:
        """Wait until a condition holds in the guest."""
        self.sh(f"until {script}; do sleep 0.2; done", deadline_s)

    def qmp(self, command: str, **arguments: Any) -> None:
        self.monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while "return" not in (answer := json.loads(self.answers.readline())):
            assert "event" in answer, answer

    def ends(self, deadline_s: float) -> bool:
        try:
            return self.process.wait(deadline_s) == 0
        except subprocess.TimeoutExpired:
            return False

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for thing in (self.answers, self.monitor, self.agent):
            thing.close()


def boot_tiny(image: Path, place: Path, *arguments: str, bios: bool = True, memory_mib: int = 256) -> Guest:
    manifest = load_manifest(image)
    kernel = image / str(kernel_name(manifest, bios=bios))
    append = f"{manifest.append} {manifest.append_tcg} innkeeper.hostname=inn-test"
    boot = ("-kernel", str(kernel), "-initrd", str(image / "initrd"), "-append", append)
    return Guest(place, *boot, *arguments, memory_mib=memory_mib)


@pytest.fixture
def tiny(tiny_image: Path, tmp_path: Path) -> Iterator[Guest]:
    guest = boot_tiny(tiny_image, tmp_path)
    try:
        guest.ask("guest-ping", 60)
        yield guest
    finally:
        guest.close()


def test_the_tiny_image_is_whole_and_names_no_mirror(tiny_image: Path) -> None:
    manifest = verify(tiny_image)
    assert manifest.kind == "tiny" and manifest.boot == "kernel" and manifest.agent
    assert any(name.startswith("linux-image-") for name in manifest.origin.packages)
    assert "://" not in (tiny_image / "manifest.json").read_text()


def test_tiny_has_a_name_and_a_shell_on_its_console(tiny: Guest) -> None:
    assert tiny.sh("hostname") == "inn-test"
    tiny.until("[ -s /etc/machine-id ]")
    assert "inn-test:/#" in tiny.serial.read_text(errors="replace")


def test_tiny_stops_at_the_power_button(tiny: Guest) -> None:
    tiny.until("pidof acpid")
    tiny.qmp("system_powerdown")
    assert tiny.ends(10)


@pytest.mark.parametrize("mode", ["powerdown", "reboot"])
def test_tiny_stops_by_its_agent(tiny: Guest, mode: str) -> None:
    tiny.tell("guest-shutdown", mode=mode)
    assert tiny.ends(10)


def test_a_panic_of_tiny_ends_the_machine(tiny: Guest) -> None:
    tiny.tell("guest-exec", path="/bin/sh", arg=["-c", "echo c > /proc/sysrq-trigger"])
    assert tiny.ends(10)


def test_tiny_with_disks_networks_and_little_memory(tiny_image: Path, tmp_path: Path) -> None:
    for name in ("a.img", "b.img"):
        (tmp_path / name).write_bytes(b"")
        os.truncate(tmp_path / name, 64 << 20)
    guest = boot_tiny(
        tiny_image, tmp_path,
        "-drive", f"if=none,id=a,format=raw,file={tmp_path}/a.img", "-device", "virtio-blk-pci,drive=a",
        "-drive", f"if=none,id=b,format=raw,file={tmp_path}/b.img",
        "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=b",
        "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n",
        "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci",
        memory_mib=128,
    )  # fmt: skip
    try:
        guest.ask("guest-ping", 60)
        guest.until("[ -b /dev/sda ]")
        for disk in ("vda", "sda"):
            guest.sh(f"mkfs.ext4 -q -F /dev/{disk} && mount /dev/{disk} /mnt && date > /mnt/x && umount /mnt")
        guest.until("ip -4 addr show dev eth0 | grep -q 10.0.2.15")
        guest.until("grep -q nameserver /etc/resolv.conf")
    finally:
        guest.close()


@pytest.mark.slow
def test_tiny_boots_from_uefi(tiny_image: Path, tmp_path: Path) -> None:
    if not OVMF_CODE.exists():
        pytest.skip("OVMF is not installed")
    flash = ("-drive", f"if=pflash,format=raw,readonly=on,file={OVMF_CODE}")
    guest = boot_tiny(tiny_image, tmp_path, *flash, bios=False)
    try:
        guest.ask("guest-ping", 120)
    finally:
        guest.close()


def boot_debian(image: Path, place: Path, *arguments: str) -> Guest:
    disk = place / "disk.qcow2"
    base = ["-b", str(image / "disk.qcow2"), "-F", "qcow2"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(disk), "6G"], check=True)
    return Guest(
        place,
        "-drive", f"if=none,id=root,format=qcow2,file={disk}",
        "-device", "virtio-blk-pci,drive=root,bootindex=0",
        "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n", "-device", "virtio-rng-pci",
        *arguments,
        memory_mib=1024,
    )  # fmt: skip


@pytest.mark.slow
def test_debian_boots_grows_and_stops(debian_image: Path, tmp_path: Path) -> None:
    guest = boot_debian(debian_image, tmp_path)
    try:
        _is_whole(guest)
        # From the initramfs, not systemd's: else init's console is what the image has for a device node,
        # which is an ordinary file in one that was built without root; and the kernel panics.
        assert guest.sh("grep ' /dev ' /proc/mounts | cut -d' ' -f1") == "udev"
        assert guest.sh("test -d /sys/firmware/efi || echo bios") == "bios"
        assert int(guest.sh("df --output=size -k / | tail -1")) > 5 << 20
        assert guest.sh("ls /etc/ssh/ssh_host_*_key") == "/etc/ssh/ssh_host_ed25519_key"
        assert len(guest.sh("cat /etc/machine-id")) == 32
        assert guest.sh("getent shadow root").startswith("root:*") or "!" in guest.sh("getent shadow root")
        guest.qmp("system_powerdown")
        assert guest.ends(60)
    finally:
        guest.close()


@pytest.mark.slow
def test_debian_boots_by_uefi_and_runs_the_seed_that_comes_with_it(
    debian_image: Path, tmp_path: Path
) -> None:
    if not OVMF_CODE.exists():
        pytest.skip("OVMF is not installed")
    shutil.copyfile(OVMF_VARS, tmp_path / "vars")
    seed = _seed(tmp_path)
    guest = boot_debian(
        debian_image, tmp_path,
        "-drive", f"if=pflash,format=raw,readonly=on,file={OVMF_CODE}",
        "-drive", f"if=pflash,format=raw,file={tmp_path}/vars",
        "-drive", f"if=none,id=seed,format=raw,file={seed}", "-device", "virtio-blk-pci,drive=seed",
    )  # fmt: skip
    try:
        _is_whole(guest)
        assert guest.sh("test -d /sys/firmware/efi && echo uefi") == "uefi"
        guest.until("[ -e /run/seed-was-run ]", 400)
        assert guest.sh("hostname") == "seeded"
        assert "datasourcenocloud" in guest.sh("cat /run/cloud-init/result.json").lower()
        guest.qmp("system_powerdown")
        assert guest.ends(60)
    finally:
        guest.close()


def _is_whole(guest: Guest) -> None:
    guest.ask("guest-ping", 180)
    guest.until("systemctl is-system-running | grep -q running", 400)
    assert guest.sh("systemctl --failed --no-legend") == ""
    guest.until("ip -4 addr | grep -q 10.0.2.15")


def _seed(place: Path) -> Path:
    """A disk of files for cloud-init."""
    seed = place / "seed.img"
    (place / "user-data").write_text(SEED)
    (place / "meta-data").write_text("instance-id: one\n")
    seed.write_bytes(bytes(2 << 20))
    subprocess.run(["mformat", "-i", str(seed), "-v", "CIDATA", "::"], check=True)
    files = [str(place / name) for name in ("user-data", "meta-data")]
    subprocess.run(["mcopy", "-i", str(seed), *files, "::"], check=True)
    return seed
