"""libvirt beside us, where it is installed: its daemons are started by hand and ended by pid.

Domains are TCG (`type='qemu'`) with the same kernel, initrd, command line, memory and agent port.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from bench.lib.facts import REPOSITORY
from bench.lib.lab import Lab, end_process, environment, run_quiet
from bench.lib.reaper import END_WITHIN_S

URI = "qemu:///system"
PREFIX = "innbench-"
SBIN = "/usr/sbin"
READY_S = 20.0
SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtlogd-sock"))


class Libvirt:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.daemon_pid = 0
        self._children: list[subprocess.Popen[bytes]] = []

    def open(self) -> None:
        for name in ("virtlogd", "libvirtd"):
            log = (self.directory / f"{name}.log").open("ab")
            with log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "bench.lib.reaper", f"{SBIN}/{name}"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment(),
                    cwd=REPOSITORY,
                    start_new_session=True,
                )
            self._children.append(child)
            assert child.stdout is not None
            self.daemon_pid = int(child.stdout.readline())
        deadline = time.monotonic() + READY_S
        while True:
            try:
                self.virsh("version")
                return
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.remove_all()
        for child in reversed(self._children):
            end_process(child, END_WITHIN_S + 5)

    def virsh(self, *args: str) -> None:
        run_quiet(["virsh", "--quiet", "--connect", URI, *args])

    def names(self) -> list[str]:
        done = subprocess.run(
            ["virsh", "--quiet", "--connect", URI, "list", "--all", "--name"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return [name for name in done.stdout.split() if name.startswith(PREFIX)]

    def define(self, xml: str) -> None:
        path = self.directory / "domain.xml"
        path.write_text(xml)
        self.virsh("define", str(path))

    def define_many(self, xmls: Sequence[str]) -> None:
        """Through one virsh, which reads its commands from a file."""
        self._many([("define", xml) for xml in xmls])

    def create_many(self, xmls: Sequence[str]) -> None:
        """Transient domains, running."""
        self._many([("create", xml) for xml in xmls])

    def _many(self, commands: Sequence[tuple[str, str]]) -> None:
        lines = []
        for index, (verb, xml) in enumerate(commands):
            path = self.directory / f"domain-{index}.xml"
            path.write_text(xml)
            lines.append(f"{verb} {path}\n")
        self._script(lines)

    def remove_all(self) -> None:
        # A transient domain is gone once destroyed; `undefine` then only says so.
        names = self.names()
        self._script([f"destroy {name}\n" for name in names], check=False)
        self._script([f"undefine {name}\n" for name in names], check=False)

    def _script(self, lines: Sequence[str], *, check: bool = True) -> None:
        done = subprocess.run(
            ["virsh", "--quiet", "--connect", URI],
            input="".join(lines), capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        if check and ("error:" in done.stderr or done.returncode):
            raise RuntimeError(f"virsh: {done.stderr.strip()[-500:]}")

    def until_agent(self, name: str) -> None:
        """Return when the agent of a domain that is booting has opened its port."""
        self.virsh("event", "--domain", name, "--event", "agent-lifecycle", "--timeout", "60")

    def share(self, image: Path) -> dict[str, Path]:
        """Copies of a kernel image's files that libvirt's QEMU may read (libvirt changes their owner)."""
        target = self.directory / "image"
        target.mkdir(mode=0o755, exist_ok=True)
        files = {}
        for name in ("kernel", "initrd"):
            files[name] = target / name
            shutil.copyfile(image / name, files[name])
            files[name].chmod(0o644)
        return files


def domain(
    name: str, *, memory_mib: int = 256, kernel: Path | None = None, initrd: Path | None = None,
    append: str = "", network: bool = True, video: bool = True,
) -> str:  # fmt: skip
    """A domain like what `inn` makes: q35, virtio, agent port, serial console to a file, RNG."""
    boot = ""
    if kernel:
        boot = f"<kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{escape(append)}</cmdline>"
    nic = "<interface type='user'><model type='virtio'/></interface>" if network else ""
    screen = "<video><model type='vga'/></video>" if video else "<video><model type='none'/></video>"
    return f"""<domain type='qemu'>
  <name>{PREFIX}{name}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <cpu mode='maximum'/>
  <os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <devices>
    <serial type='pty'/><console type='pty'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='none'/>
    {nic}{screen}
  </devices>
</domain>
"""


def installed() -> bool:
    return os.geteuid() == 0 and shutil.which("virsh") is not None and Path(f"{SBIN}/libvirtd").exists()


@contextlib.contextmanager
def libvirt(lab: Lab) -> Iterator[Libvirt | None]:
    """None where it is not installed, we are not root, or one runs already (not ours to load)."""
    if not installed() or _answers():
        yield None
        return
    directory = lab.directory / "libvirt"
    directory.mkdir(mode=0o755, exist_ok=True)
    peer = Libvirt(directory)
    try:
        peer.open()
        yield peer
    finally:
        peer.close()


def _answers() -> bool:
    done = subprocess.run(
        ["virsh", "--quiet", "--connect", URI, "version"], capture_output=True, timeout=30, check=False
    )
    return done.returncode == 0
