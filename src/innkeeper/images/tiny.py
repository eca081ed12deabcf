"""The tiny image: Debian's cloud kernel and an initramfs with busybox and the QEMU guest agent.

Boots in little more than a second without hardware virtualization. It has no disk: what a guest
writes is gone with it, unless written to a disk that the user mounts.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Final

from innkeeper.drivers.run import Runner
from innkeeper.errors import Failed
from innkeeper.images import cpio, elf, kmodules, reseed
from innkeeper.images.debs import KERNELS, PackageTree, Progress, add_packages, dependencies, kernel_meta
from innkeeper.images.foreign import ARCHITECTURES, Architecture, ForeignApt, architecture
from innkeeper.images.imagedir import VMLINUX, ImageDraft, ImageManifest, Origin, commit_image, staging
from innkeeper.images.kernel import NoVmlinux, extract_vmlinux
from innkeeper.units import MiB
from innkeeper.version import version

_MODULES: Final = (
    # in the order in which a guest wants them
    "virtio_pci", "virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "virtio_scsi", "virtio-rng",
    "virtio_balloon", "virtio_mem", "vmgenid", "virtiofs", "vmw_vsock_virtio_transport",
    "virtio_input", "button", "evdev", "sd_mod", "sr_mod", "ata_piix", "ahci", "nvme", "e1000", "e1000e",
    "isofs", "vfat", "nls_ascii", "nls_iso8859-1", "nls_utf8", "nls_cp437", "crc32c_generic", "ext4",
    "overlay", "loop", "gpio-pl061", "gpio_keys", "pvpanic", "pvpanic-pci", "qemu_fw_cfg", "i6300esb",
    "iTCO_wdt", "softdog",
)  # fmt: skip
_SCRIPTS: Final = {
    "init": ("tiny-init", 0o755),
    "lib/inn/agent": ("tiny-agent", 0o755),
    "lib/inn/late": ("tiny-late", 0o755),
    "lib/inn/net": ("tiny-net", 0o755),
    "lib/inn/dhcp": ("tiny-dhcp", 0o755),
    "bin/shutdown": ("tiny-shutdown", 0o755),
    "etc/fstab": ("tiny-fstab", 0o644),
    "etc/mdev.conf": ("tiny-mdev.conf", 0o644),
    "etc/profile": ("tiny-profile", 0o644),
}
# Package: the programs of it that go into the image.
_PROGRAMS: Final = {"qemu-guest-agent": ("qemu-ga",), "e2fsprogs": ("mke2fs", "e2fsck", "resize2fs")}
_TEXTS: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\ndisk:x:6:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
    "etc/hostname": "tiny\n",
    "etc/shells": "/bin/sh\n",
    # what a mount without a type tries: drivers that nobody has loaded yet are in no other list
    "etc/filesystems": "ext4\nvfat\niso9660\n",
    "etc/inittab": "::ctrlaltdel:/sbin/reboot\n::shutdown:/bin/umount -ar\n",
    # acpid of busybox starts the file of that name when the power button is pressed
    "etc/acpi/PWRF/00000080": "#!/bin/sh\nexec /sbin/poweroff\n",
}
MIN_MEMORY_BYTES: Final = 128 * MiB


@dataclass(frozen=True)
class _Parts:
    """What the packages gave: everything that goes into the image."""

    release: str
    kernel: Path
    busybox: Path
    applets: tuple[str, ...]
    programs: dict[str, Path]
    settings: dict[str, Path]
    libraries: dict[str, Path]
    modules: list[kmodules.Module]
    architecture: Architecture = ARCHITECTURES["x86_64"]


async def build_tiny(
    images_dir: Path, runner: Runner, progress: Progress, *, arch: str = "x86_64"
) -> ImageManifest:
    """Build the image from this machine's package sources; the same packages give the same image. `arch` is
    the guest's architecture, by our name or Debian's.

    `progress(stage, fraction done or None, detail)` is called as it goes. Raises Unsupported when
    the sources have no suitable kernel, NoCapacity when the disk is full, Failed when packages cannot
    be fetched; nothing is left behind then.
    """
    started = time.monotonic()
    wanted = architecture(arch)
    with staging(images_dir) as directory, tempfile.TemporaryDirectory(prefix="inn-tiny-") as scratch:
        tree = PackageTree(Path(scratch) / "root")
        tree.root.mkdir()
        progress("packages", 0.0, "kernel, busybox and guest agent")
        parts = await _collect(runner, wanted, tree, Path(scratch))
        progress("initramfs", 0.6, f"Linux {parts.release}, {len(parts.modules)} modules")
        await asyncio.to_thread(_place_kernel, parts.kernel, directory)
        initramfs = await asyncio.to_thread(make_initramfs, parts)
        await asyncio.to_thread((directory / "initrd").write_bytes, initramfs)
        progress("commit", 0.9, "hash and sync")
        draft = ImageDraft(
            architecture=wanted.name,
            kind="tiny",
            boot="kernel",
            append=wanted.append,
            append_tcg=wanted.append_tcg,
            agent=True,
            min_memory_bytes=MIN_MEMORY_BYTES,
            origin=Origin(
                tool="build_tiny",
                innkeeper_version=version(),
                packages=tree.versions,
                suites=tuple(sorted(tree.suites)),
                build_seconds=round(time.monotonic() - started, 1),
            ),
            created_at=datetime.now(UTC),
        )
        manifest = await asyncio.to_thread(commit_image, images_dir, directory, draft)
    progress("done", 1.0, manifest.id)
    return manifest


async def _collect(host: Runner, wanted: Architecture, tree: PackageTree, scratch: Path) -> _Parts:
    debs = scratch / "debs"
    runner: Runner = host
    if wanted.debian != (await host.run(["dpkg", "--print-architecture"], deadline_s=30)).text.strip():
        runner = foreign = ForeignApt(host, wanted, scratch)
        await foreign.fetch_lists()
    kernel_names = await kernel_packages(runner, wanted.kernels)
    await add_packages(runner, tree, [*kernel_names, "busybox-static", *_PROGRAMS], debs)
    programs = {
        name: _first(tree.root, f"usr/sbin/{name}", f"sbin/{name}")
        for names in _PROGRAMS.values()
        for name in names
    }
    busybox = _first(tree.root, "usr/bin/busybox", "bin/busybox")
    kernel = sorted((tree.root / "boot").glob("vmlinu[xz]-*"))[-1:]
    if not kernel:
        raise Failed("The kernel package has no kernel in /boot")
    release = kernel[0].name.partition("-")[2]
    modules_dir = _first(tree.root, f"usr/lib/modules/{release}", f"lib/modules/{release}")
    libraries = await _libraries(runner, tree, debs, list(programs.values()))
    return _Parts(
        release=release,
        kernel=kernel[0],
        busybox=busybox,
        applets=await _applets(host, busybox, scratch, native=runner is host),
        programs=programs,
        settings={"etc/mke2fs.conf": _first(tree.root, "etc/mke2fs.conf")},
        libraries=libraries,
        modules=await _modules(runner, modules_dir),
        architecture=wanted,
    )


async def _applets(host: Runner, busybox: Path, scratch: Path, *, native: bool) -> tuple[str, ...]:
    """What a busybox can do, as it says itself; of one that cannot run here, as this machine's says:
    Debian builds all with one configuration, and hardly changes it from release to release."""
    if not native:
        tree = PackageTree(scratch / "native")
        tree.root.mkdir()
        await add_packages(host, tree, ["busybox-static"], scratch / "native-debs")
        busybox = _first(tree.root, "usr/bin/busybox", "bin/busybox")
    listed = await host.run([str(busybox), "--list"], deadline_s=30)
    return tuple(sorted(listed.text.split()))


async def kernel_packages(runner: Runner, kernels: Sequence[str] = KERNELS) -> list[str]:
    """The image and module packages of the kernel for virtual machines."""
    needed = await dependencies(runner, await kernel_meta(runner, kernels))
    images = [name for name in needed if name.startswith("linux-image-")]
    below = [name for image in images for name in await dependencies(runner, image)]
    return [*images, *(name for name in below if name.startswith("linux-modules-"))]


async def _libraries(runner: Runner, tree: PackageTree, debs: Path, programs: list[Path]) -> dict[str, Path]:
    """The libraries of `programs`, from the packages it depends on, fetched level by level as needed."""
    level = list(_PROGRAMS)
    for _ in range(6):
        found, missing = await asyncio.to_thread(
            elf.closure, programs, lambda name: elf.find_library(tree.root, name)
        )
        if not missing:
            return found
        below = [name for package in level for name in await dependencies(runner, package)]
        level = [name for name in dict.fromkeys(below) if name.startswith(("lib", "zlib"))]
        await add_packages(runner, tree, level, debs)
    raise Failed(f"No package has the libraries {', '.join(sorted(missing))}")


async def _modules(runner: Runner, root: Path) -> list[kmodules.Module]:
    if await asyncio.to_thread(_has_zstd_modules, root):
        await runner.run(["zstd", "-d", "-q", "-r", "--rm", str(root / "kernel")], deadline_s=300)
    tree = kmodules.read_tree(root)
    return await asyncio.to_thread(
        kmodules.closure, _MODULES, lambda name: tree.read(name) if name in tree.files else None
    )


def _has_zstd_modules(root: Path) -> bool:
    return any(root.rglob("*.ko.zst"))


def _first(root: Path, *places: str) -> Path:
    for place in places:
        if (root / place).exists():
            return root / place
    raise Failed(f"The packages have no {places[0]}", hint="this release of Debian or Ubuntu is not known")


def _place_kernel(source: Path, directory: Path) -> None:
    """`kernel` boots everywhere; `vmlinux`, where it can be had, is the same kernel for BIOS machines."""
    image = source.read_bytes()
    (directory / "kernel").write_bytes(image)
    with contextlib.suppress(NoVmlinux):
        (directory / VMLINUX).write_bytes(extract_vmlinux(image))


def make_initramfs(parts: _Parts) -> bytes:
    """The archive, uncompressed: under TCG as fast as lz4 or faster, and 200 ms faster than gzip and zstd."""
    out = io.BytesIO()
    cpio.write_cpio(out, _entries(parts))
    return out.getvalue()


def _entries(parts: _Parts) -> list[cpio.Entry]:
    entries = [cpio.directory(path) for path in ("proc", "sys", "mnt", "dev", "var/log", "etc")]
    entries += [cpio.directory("tmp", 0o1777), cpio.directory("root", 0o700), cpio.directory("run")]
    # One directory of programs under all its names, as guest agents call some by full path.
    entries += [cpio.symlink(path, target) for path, target in _LINKS.items()]
    entries += [cpio.char_device("dev/console", 5, 1), cpio.char_device("dev/null", 1, 3, 0o666)]
    own = resources.files("innkeeper.images") / "files"
    for path, (name, mode) in _SCRIPTS.items():
        entries.append(cpio.regular(path, (own / name).read_bytes(), mode))
    if (reseeding := reseed.program(parts.architecture.name)) is not None:
        entries.append(cpio.regular("lib/inn/reseed", reseeding, 0o755))
    for path, text in _TEXTS.items():
        entries.append(cpio.regular(path, text.encode(), 0o755 if "/acpi/" in path else 0o644))
    about = f'ID=innkeeper-tiny\nNAME="Innkeeper tiny"\nPRETTY_NAME="Innkeeper tiny, Linux {parts.release}"\n'
    entries.append(cpio.regular("etc/os-release", about.encode()))
    for name, source in {"busybox": parts.busybox, **parts.programs}.items():
        entries.append(cpio.regular(f"bin/{name}", source.read_bytes(), 0o755))
    for path, source in parts.settings.items():
        entries.append(cpio.regular(path, source.read_bytes()))
    taken = {entry.path for entry in entries}
    for applet in parts.applets:
        if f"bin/{applet}" not in taken:
            entries.append(cpio.symlink(f"bin/{applet}", "busybox"))
    for name, source in parts.libraries.items():
        place = parts.architecture.loader if name.startswith("ld-linux") else parts.architecture.libraries
        entries.append(cpio.regular(f"{place}/{name}", source.read_bytes(), 0o755))
    base = f"lib/modules/{parts.release}"
    entries += [cpio.regular(f"{base}/{module.path}", module.data) for module in parts.modules]
    for name, text in kmodules.index_files(parts.modules).items():
        entries.append(cpio.regular(f"{base}/{name}", text.encode()))
    return entries


_LINKS: Final = {
    "sbin": "bin",
    "usr/bin": "../bin",
    "usr/sbin": "../bin",
    "usr/lib": "../lib",
    "bin/poweroff": "shutdown",
    "bin/reboot": "shutdown",
    "bin/halt": "shutdown",
    "bin/mkfs.ext4": "mke2fs",
    "bin/fsck.ext4": "e2fsck",
    "var/run": "../run",
    "etc/mtab": "../proc/mounts",
}
