"""The programs Innkeeper runs: started, not only looked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import tempfile
from typing import Any, Final

from innkeeper.agent.doctor.base import DoctorContext, Finding, Verdict, check, missing_programs
from innkeeper.agent.facts import parse_machine_help
from innkeeper.drivers.run import Finished
from innkeeper.engine.qemu.argv import SANDBOX
from innkeeper.errors import CommandFailed, InnkeeperError

QEMU: Final = "qemu-system-x86_64"
_NO_PASST: Final = "QEMU's slirp does, slower; with it guests reach services on the host's loopback"
# Program -> Debian package.
_IMAGE_TOOLS: Final = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "sfdisk": "fdisk",
    "cpio": "cpio",
    "mcopy": "mtools",
    "dpkg-deb": "dpkg",
}
_NETWORK_TOOLS: Final = {"nft": "nftables", "dnsmasq": "dnsmasq-base"}
_OPTIONAL_TOOLS: Final = {"swtpm": "swtpm"}

_MACHINES: Final = ("q35", "pc", "microvm")
_START_DEADLINE_S: Final = 15.0
_PASST_DEADLINE_S: Final = 8.0
_POLL_S: Final = 0.02


async def _start_qemu(context: DoctorContext, *options: str) -> Finished:
    """Start QEMU without a machine, read its greeting and make it quit."""
    commands = b'{"execute":"qmp_capabilities"}\n{"execute":"quit"}\n'
    return await context.runner.run(
        [QEMU, "-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio", *options],
        deadline_s=_START_DEADLINE_S,
        stdin=commands,
    )


def greeting_version(output: str) -> str:
    """The version in QMP's greeting line, `major.minor.micro`, or empty if there is no greeting
    (QEMU docs/interop/qmp-spec.txt, "Server Greeting")."""
    for line in output.splitlines():
        try:
            data: Any = json.loads(line)
            version = data["QMP"]["version"]["qemu"]
            return f"{version['major']}.{version['minor']}.{version['micro']}"
        except (ValueError, KeyError, TypeError):
            continue
    return ""


@check("qemu", deadline_s=40.0)
async def check_qemu(context: DoctorContext) -> Finding:
    absent = missing_programs(context, "qemu", "fail", {QEMU: "qemu-system-x86"}, "no VM can run")
    if absent:
        return absent
    try:
        version = greeting_version((await _start_qemu(context)).text)
        listed = await context.runner.run([QEMU, "-machine", "help"], deadline_s=_START_DEADLINE_S)
    except CommandFailed as error:
        return Finding("qemu", "fail", error.message, "apt-get install --reinstall -y qemu-system-x86")
    if not version:
        return Finding(
            "qemu",
            "fail",
            "started, but gave no QMP greeting",
            "apt-get install --reinstall -y qemu-system-x86",
        )
    machines = parse_machine_help(listed.text)
    named = {machine.name: machine for machine in machines}
    lacking = [name for name in _MACHINES if name not in named]
    aliases = ", ".join(
        f"{name} = {named[name].alias_of}" if named[name].alias_of else name
        for name in _MACHINES
        if name in named
    )
    detail = f"QEMU {version} starts and answers; {len(machines)} machine types ({aliases})"
    if {"q35", "pc"} & set(lacking):
        return Finding("qemu", "fail", f"{detail}; lacks {', '.join(lacking)}")
    return Finding("qemu", "ok", detail + (f"; lacks {', '.join(lacking)}" if lacking else ""))


@check("sandbox", deadline_s=20.0)
async def check_sandbox(context: DoctorContext) -> Finding:
    """QEMU's seccomp filter: accepted by this build and this kernel?"""
    if not context.find(QEMU):
        return Finding("sandbox", "info", "not tried: QEMU is not installed")
    try:
        done = await _start_qemu(context, "-sandbox", SANDBOX)
    except CommandFailed as error:
        return Finding("sandbox", "fail", f"QEMU does not start with -sandbox on: {error.message}")
    if not greeting_version(done.text):
        return Finding("sandbox", "fail", "QEMU with -sandbox on gave no QMP greeting")
    return Finding("sandbox", "ok", f"QEMU starts with -sandbox {SANDBOX}")


@check("qemu-img", deadline_s=20.0)
async def check_qemu_img(context: DoctorContext) -> Finding:
    """Makes a small qcow2 image and reads it back."""
    absent = missing_programs(context, "qemu-img", "fail", {"qemu-img": "qemu-utils"}, "no disk can be made")
    if absent:
        return absent
    with tempfile.TemporaryDirectory(prefix=f"innkeeper-doctor-{os.getpid()}-") as folder:
        image = os.path.join(folder, "probe.qcow2")
        try:
            version = await context.runner.run(["qemu-img", "--version"], deadline_s=5)
            await context.runner.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], deadline_s=10)
            seen = await context.runner.run(["qemu-img", "info", "--output=json", image], deadline_s=10)
            good = json.loads(seen.text).get("virtual-size") == 1024 * 1024
        except (CommandFailed, ValueError) as error:
            return Finding("qemu-img", "fail", f"cannot make an image: {error}")
    match = re.search(r"version (\S+)", version.text)
    if not good:
        return Finding("qemu-img", "fail", "an image made has another size than asked for")
    return Finding(
        "qemu-img", "ok", f"version {match.group(1) if match else 'unknown'}; makes and reads qcow2"
    )


@check("passt", deadline_s=15.0)
async def check_passt(context: DoctorContext) -> Finding:
    """Starts passt on a socket of its own, connects, and sees it off."""
    verdict: Verdict = "warn" if context.privileged else "fail"
    absent = missing_programs(context, "passt", verdict, {"passt": "passt"}, _NO_PASST)
    if absent:
        return absent
    with tempfile.TemporaryDirectory(prefix=f"innkeeper-doctor-{os.getpid()}-") as folder:
        path = os.path.join(folder, "passt.socket")
        if os.geteuid() == 0:
            # As root passt becomes nobody before it binds, and carries on silently when it may not.
            shutil.chown(folder, "nobody")
        # In the foreground, and for one connection only: it ends by itself when we hang up.
        serving = asyncio.create_task(
            context.runner.run(
                ["passt", "-f", "-e", "-1", "-s", path], deadline_s=_PASST_DEADLINE_S, check=False
            )
        )
        try:
            connected = await _connects(serving, path)
            ended = await serving
        except InnkeeperError as error:
            return Finding("passt", verdict, error.message, error.hint)
        finally:
            serving.cancel()
            await asyncio.wait({serving})
    if not connected:
        said = ended.stderr.decode(errors="replace").splitlines()
        # Without a syslog daemon it complains about that at each line, which is no reason to fail.
        reasons = [line.strip() for line in said if line.strip() and "to syslog" not in line]
        return Finding("passt", verdict, f"does not serve: {reasons[-1] if reasons else ended.complaint}")
    return Finding("passt", "ok", "starts and accepts a connection")


async def _connects(serving: asyncio.Task[Finished], path: str) -> bool:
    """Connect and hang up; False when it ended before that."""
    while not serving.done():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.connect(path)
                return True
        await asyncio.sleep(_POLL_S)
    return False


@check("image-tools")
def check_image_tools(context: DoctorContext) -> Finding:
    absent = missing_programs(context, "image-tools", "warn", _IMAGE_TOOLS, "images cannot be built")
    return absent or Finding("image-tools", "ok", f"{', '.join(_IMAGE_TOOLS)} are installed")


@check("network-tools")
def check_network_tools(context: DoctorContext) -> Finding:
    """For networks with a bridge and NAT; only root makes those."""
    level: Verdict = "warn" if context.privileged else "info"
    absent = missing_programs(
        context, "network-tools", level, _NETWORK_TOOLS, "no bridged networks with NAT and DHCP"
    )
    return absent or Finding("network-tools", "ok", f"{', '.join(_NETWORK_TOOLS)} are installed")


@check("optional-tools")
def check_optional_tools(context: DoctorContext) -> Finding:
    absent = missing_programs(context, "optional-tools", "info", _OPTIONAL_TOOLS, "no virtual TPM")
    return absent or Finding("optional-tools", "ok", f"{', '.join(_OPTIONAL_TOOLS)} are installed")
