"""The Debian image: a whole system with systemd, cloud-init, SSH server and guest agent, on a disk.

Built by mmdebstrap from this machine's own package sources, as root or as an ordinary user. Boots from BIOS
and from UEFI, has no password, no host keys and no machine id: those are made at the first boot.
"""

from __future__ import annotations

import asyncio
import io
import os
import pwd
import re
import shutil
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Final

from innkeeper.drivers.run import Runner, missing_program, which
from innkeeper.errors import BadRequest, InnkeeperError, NoCapacity, Unsupported
from innkeeper.images.aptsources import choose, machine_sources, proxy_options
from innkeeper.images.bootdisk import Layout, Parts, assemble
from innkeeper.images.debs import APT_ENV, Progress, explain_apt, kernel_meta, knows
from innkeeper.images.imagedir import ImageDraft, ImageManifest, Origin, commit_image, staging
from innkeeper.units import GiB, MiB, human_size
from innkeeper.version import version

DISK_BYTES: Final = 4 * GiB
# The recipe's own packages take 1.3 GiB with what a file system needs to work well.
MIN_DISK_BYTES: Final = 2 * GiB
MIN_MEMORY_BYTES: Final = 384 * MiB
_BUILD_DEADLINE_S: Final = 3600.0
_STEP_DEADLINE_S: Final = 600.0
_PROGRAMS: Final = ("mmdebstrap", "sfdisk", "mformat", "mcopy", "qemu-img", "resize2fs")
_PACKAGES: Final = (
    "systemd-sysv", "udev", "dbus", "libpam-systemd", "iproute2", "iputils-ping", "kmod",
    "initramfs-tools", "busybox", "lz4", "e2fsprogs", "cloud-init", "qemu-guest-agent", "openssh-server",
    "sudo", "ca-certificates", "curl", "less", "procps", "nano", "bash-completion",
)  # fmt: skip
# In some releases a package of their own, in others part of systemd.
_PACKAGES_IF_THERE: Final = ("systemd-repart", "systemd-resolved")
_NETWORK: Final = """[Match]
Type=ether

[Network]
DHCP=yes

[DHCPv4]
UseDomains=yes
"""
_FILES: Final = {
    "etc/fstab": "UUID=@ROOT_UUID@ / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 0\n",
    "etc/systemd/network/80-inn-dhcp.network": _NETWORK,
    # any interface will do, none is no error; only cloud-init asks for this at all
    "etc/systemd/system/systemd-networkd-wait-online.service.d/inn.conf": (
        "[Service]\nExecStart=\nExecStart=-/lib/systemd/systemd-networkd-wait-online --any --timeout=10\n"
    ),
    "etc/repart.d/50-root.conf": "[Partition]\nType=root\n",
    "etc/ssh/sshd_config.d/inn.conf": "HostKey /etc/ssh/ssh_host_ed25519_key\nUseDNS no\n",
    # The agent answers as soon as there are files to work with, not after all other services. Its port's
    # driver comes with the initramfs, and its device is looked at before the others.
    "etc/systemd/system/qemu-guest-agent.service.d/inn.conf": (
        "[Unit]\nDefaultDependencies=no\nAfter=local-fs.target systemd-tmpfiles-setup.service\n"
        "Conflicts=shutdown.target\nBefore=shutdown.target\n"
        # It tells the system's log of every command it is given, also of each question how one goes.
        "[Service]\nLogLevelMax=notice\n"
    ),
    "etc/systemd/system/systemd-udev-trigger.service.d/inn.conf": (
        "[Service]\nExecStart=\nExecStart=-udevadm trigger --type=all --action=add"
        " --prioritized-subsystem=virtio-ports,module,block,net,tty,input\n"
    ),
}
# Wanted before the kernel is installed, which makes the initramfs. `list`: only these drivers.
_EARLY_FILES: Final = {
    "etc/initramfs-tools/conf.d/inn": "MODULES=list\nCOMPRESS=lz4\nRESUME=none\nFSTYPE=ext4\n",
    "usr/share/initramfs-tools/modules.d/inn": (
        "virtio_pci\nvirtio_blk\nvirtio_console\nvirtio_scsi\nsd_mod\nsr_mod\nata_piix\nata_generic\n"
    ),
}
_EARLY_SHIPPED: Final = {
    "etc/initramfs-tools/hooks/zz-inn": "debian-initramfs-hook",
    "etc/initramfs-tools/scripts/init-bottom/inn-dev": "debian-initramfs-dev",
}
_SHIPPED: Final = {
    "boot/grub/grub.cfg": "debian-grub.cfg",
    "etc/cloud/cloud.cfg.d/99-inn.cfg": "debian-cloud.cfg",
    "etc/systemd/system/inn-hostkeys.service": "debian-hostkeys.service",
    "etc/systemd/system-generators/cloud-init-generator": "debian-cloud-generator",
}
# What mmdebstrap says on the way, and how far it is then.
_STAGES: Final = (
    (re.compile(r"running apt-get update"), "lists", 0.02),
    (re.compile(r"downloading packages with apt"), "download", 0.05),
    (re.compile(r"extracting archives"), "unpack", 0.12),
    (re.compile(r"installing essential packages"), "essential", 0.18),
    (re.compile(r"installing remaining packages"), "install", 0.28),
    (re.compile(r"running --customize-hook"), "file system", 0.75),
    (re.compile(r"cleaning package lists"), "clean", 0.88),
)


async def build_debian(
    images_dir: Path,
    runner: Runner,
    progress: Progress,
    suite: str | None = None,
    *,
    packages: Sequence[str] = (),
    disk_bytes: int = DISK_BYTES,
) -> ImageManifest:
    """Build the image; takes a minute or two and some 3 GiB below `images_dir` meanwhile.

    `suite` is a code name such as `bookworm`; the default is what this machine's sources say. `packages`
    are installed beside those of the recipe. Raises Unsupported when a program, a package or the right to
    use user namespaces is missing, BadRequest when `disk_bytes` is too small for any system, NoCapacity when
    the disk is full, Failed when packages cannot be fetched; nothing is left behind then.
    """
    started = time.monotonic()
    if disk_bytes < MIN_DISK_BYTES:
        raise BadRequest(
            f"A Debian does not fit on {human_size(disk_bytes)}",
            hint=f"give at least {human_size(MIN_DISK_BYTES)}, or leave it out for {human_size(DISK_BYTES)}",
        )
    mode = await asyncio.to_thread(check_host)
    await _all_known(runner, packages)
    codename, lines = choose(await machine_sources(runner), suite)
    layout = Layout(disk_bytes)
    with staging(images_dir) as directory:
        # Scratch files lie beside the image: the same file system, and swept up with it.
        scratch = Path(tempfile.mkdtemp(prefix="work-", dir=directory))
        wanted = [*await _packages(runner), *packages]
        parts, installed = await _bootstrap(runner, progress, scratch, mode, codename, lines, wanted)
        progress("disk", 0.9, "partitions and boot loader")
        disk = await _make_disk(runner, parts, layout, scratch)
        await runner.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk), str(directory / "disk.qcow2")],
            deadline_s=_STEP_DEADLINE_S,
        )
        await asyncio.to_thread(_remove, scratch)
        progress("commit", 0.97, "hash and sync")
        draft = ImageDraft(
            kind="debian",
            boot="disk",
            agent=True,
            min_memory_bytes=MIN_MEMORY_BYTES,
            disk_virtual_size_bytes=layout.size_bytes,
            origin=Origin(
                tool="build_debian",
                innkeeper_version=version(),
                packages=installed,
                suites=tuple(sorted({line.split("] ")[-1].split()[-2] for line in lines})),
                build_seconds=round(time.monotonic() - started, 1),
            ),
            created_at=datetime.now(UTC),
        )
        manifest = await asyncio.to_thread(commit_image, images_dir, directory, draft)
    progress("done", 1.0, manifest.id)
    return manifest


def check_host() -> str:
    """mmdebstrap's mode for this user. Raises Unsupported, saying what to install or to set up."""
    for program in _PROGRAMS:
        if which(program) is None:
            raise missing_program(program)
    if os.geteuid() == 0:
        return "root"
    for program in ("newuidmap", "newgidmap"):
        if which(program) is None:
            raise Unsupported(f"{program} is not installed", hint="install it: apt-get install uidmap")
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        # newuidmap(1) would refuse, too: it looks up who calls it.
        raise Unsupported(
            f"There is no user with uid {os.geteuid()}, which building an image without root needs",
            hint="build as root or as a user of this machine, and use it with: inn image import",
        ) from None
    for path in ("/etc/subuid", "/etc/subgid"):
        if not _has_range(Path(path), user, os.geteuid()):
            raise Unsupported(
                f"{user} has no range of ids in {path}, which building an image without root needs",
                hint=f"run as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )
    clone = Path("/proc/sys/kernel/unprivileged_userns_clone")
    if clone.exists() and clone.read_text().strip() == "0":
        raise Unsupported(
            "User namespaces are switched off for ordinary users",
            hint="run as root: sysctl kernel.unprivileged_userns_clone=1",
        )
    return "unshare"


def _has_range(path: Path, user: str, uid: int) -> bool:
    """Whether a line of subuid(5) gives this user the 65536 ids that a system needs."""
    try:
        rows = [line.split(":") for line in path.read_text().splitlines()]
    except OSError:
        return False
    return any(
        len(row) == 3 and row[0] in (user, str(uid)) and row[2].isdigit() and int(row[2]) >= 65536
        for row in rows
    )


async def _bootstrap(
    runner: Runner,
    progress: Progress,
    scratch: Path,
    mode: str,
    codename: str,
    lines: list[str],
    packages: Sequence[str],
) -> tuple[Parts, dict[str, str]]:
    """Run mmdebstrap; the parts of the disk and the exact packages."""
    root_uuid = str(uuid.uuid4())
    early, late = scratch / "early.tar", scratch / "late.tar"
    await asyncio.to_thread(early.write_bytes, make_tar(early_files()))
    await asyncio.to_thread(late.write_bytes, make_tar(own_files(root_uuid)))
    outputs = ("root.ext4", "core.img", "boot.img", "bootx64.efi", "packages")
    hook = _shipped("debian-hook")
    argv = [
        "mmdebstrap", f"--mode={mode}", "--format=null", "--variant=minbase", "--architectures=amd64",
        '--aptopt=Acquire::Languages "none"',
        '--dpkgopt=path-exclude=/usr/share/man/*', '--dpkgopt=path-exclude=/usr/share/locale/*',
        '--dpkgopt=path-exclude=/usr/share/doc/*', '--dpkgopt=path-include=/usr/share/doc/*/copyright',
        *(f"--aptopt={line}" for line in await proxy_options(runner)),
        f"--include={','.join(dict.fromkeys(packages))}",
        f"--essential-hook=tar-in {early} /",
        f"--customize-hook=tar-in {late} /",
        f"--customize-hook={hook}",
        *(f"--customize-hook=download /inn/{name} {scratch / name}" for name in outputs),
        codename, "/dev/null", "-",
    ]  # fmt: skip
    env = {**APT_ENV, "INN_ROOT_UUID": root_uuid, "TMPDIR": os.environ.get("TMPDIR", "/var/tmp")}
    try:
        await runner.run(
            argv,
            deadline_s=_BUILD_DEADLINE_S,
            stdin="\n".join(lines).encode() + b"\n",
            env=env,
            on_line=stage_reader(progress),
        )
    except InnkeeperError as error:
        raise explain_apt(error) from error
    rows = [line.split() for line in (await asyncio.to_thread((scratch / "packages").read_text)).splitlines()]
    parts = Parts(
        boot_img=scratch / "boot.img",
        core_img=scratch / "core.img",
        efi_program=scratch / "bootx64.efi",
        root=scratch / "root.ext4",
    )
    return parts, {row[0]: row[1] for row in rows if len(row) == 2}


async def _packages(runner: Runner) -> list[str]:
    kernel = await kernel_meta(runner)
    extra = [name for name in _PACKAGES_IF_THERE if await knows(runner, name)]
    return [kernel, *_PACKAGES, *extra]


async def _all_known(runner: Runner, packages: Sequence[str]) -> None:
    """Raises Unsupported for packages this machine's apt has not got: else it would say so minutes later."""
    unknown = [name for name in packages if not await knows(runner, name)]
    if unknown:
        raise Unsupported(
            f"This machine's apt does not know {', '.join(unknown)}",
            hint="check the spelling, or run as root: apt-get update",
        )


async def _make_disk(runner: Runner, parts: Parts, layout: Layout, scratch: Path) -> Path:
    root = str(parts.root)
    smallest = await asyncio.to_thread(lambda: parts.root.stat().st_size)
    if smallest > layout.root_bytes:
        raise NoCapacity(
            f"What was installed needs {human_size(smallest)}; the image's root has"
            f" {human_size(layout.root_bytes)}",
            hint="give the image more room: inn image build debian --size 8GiB ...",
        )
    await runner.run(["resize2fs", root, f"{layout.root_bytes // 1024}K"], deadline_s=_STEP_DEADLINE_S)
    disk = scratch / "disk.raw"
    await assemble(runner, parts, layout, disk)
    return disk


def _shipped(name: str) -> str:
    return (resources.files("innkeeper.images") / "files" / name).read_text()


def _remove(path: Path) -> None:
    shutil.rmtree(path)


def early_files() -> dict[str, str]:
    """What has to be there before the packages: {path: text}."""
    return {**_EARLY_FILES, **{path: _shipped(name) for path, name in _EARLY_SHIPPED.items()}}


def own_files(root_uuid: str) -> dict[str, str]:
    """What the image has beside its packages: {path: text}."""
    texts = {**_FILES, **{path: _shipped(name) for path, name in _SHIPPED.items()}}
    return {path: text.replace("@ROOT_UUID@", root_uuid) for path, text in texts.items()}


def make_tar(files: Mapping[str, str]) -> bytes:
    """An archive of text files that belong to root; scripts (`#!`) can be executed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, text in sorted(files.items()):
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(text.encode()), 0o755 if text.startswith("#!") else 0o644
            archive.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


def stage_reader(progress: Progress) -> Callable[[str], None]:
    """Turns mmdebstrap's output, line by line, into stages of `progress`."""
    current = ("start", 0.0)

    def read(line: str) -> None:
        nonlocal current
        for pattern, stage, fraction in _STAGES:
            if pattern.search(line) and fraction > current[1]:
                current = (stage, fraction)
                progress(stage, fraction, "")
                return
        for verb in ("Setting up ", "Unpacking "):
            if line.startswith(verb):
                progress(current[0], current[1], verb + line.removeprefix(verb).split()[0])

    return read
