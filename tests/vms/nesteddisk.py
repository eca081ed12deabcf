"""A disk that makes a tiny guest a host of VMs: this machine's own QEMU, Python and Innkeeper, and the tiny
image for guests of its own. Seconds to make, where the lab's Debian takes minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lab.payload import REPOSITORY, package_files

from helpers import run
from innkeeper.drivers.run import SystemRunner, which
from innkeeper.images import elf, kmodules
from innkeeper.images.debs import PackageTree, add_packages
from innkeeper.images.tiny import kernel_packages
from vms import templates

ROOT = Path("/")
STATE = "/state"
# Run by the tiny guest from its own root: drivers, and the file systems of a host. The module that is for
# another maker's CPU cannot be loaded. KVM's device is for group kvm, as udev would have it.
_UP = """
set -e
here=$(cd "$(dirname "$0")" && pwd)
for module in "$here"/modules/*.ko; do insmod "$module" 2>/dev/null || true; done
for name in proc sys dev; do mount --bind /$name "$here/$name"; done
for name in run tmp; do mount -t tmpfs none "$here/$name"; done
chgrp 106 /dev/kvm && chmod 660 /dev/kvm
"""
ENVIRONMENT = {
    "PATH": "/usr/bin",
    "HOME": "/root",
    "INNKEEPER_STATE": STATE,
    "PYTHONPATH": "/opt/inn/src:/opt/inn/packages",
}
# modprobe of busybox reads these; the guest has no KVM in its own module directory.
_MODULES = ("kvm_amd", "kvm_intel")
_QEMU_DATA = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
# The parts of the standard library that no daemon imports, and the largest.
_NOT_NEEDED = {
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "site-packages",
    "dist-packages",
}


def build(disk: Path, tiny: Path, cache: Path) -> None:
    """Write an ext4 image to `disk`. `cache` keeps the kernel modules, which are fetched from the package
    sources: those of the kernel of `tiny`."""
    with tempfile.TemporaryDirectory(prefix="inn-nested-", dir=disk.parent) as scratch:
        root = Path(scratch)
        _programs(root)
        _python(root)
        (root / STATE[1:]).mkdir(mode=0o700)
        templates.register(root / STATE[1:], "tiny", tiny)
        _place(sorted(_modules(cache / f"kvm-{tiny.name[:16]}").iterdir()), root / "modules")
        (root / "up").write_text(_UP)
        for name in ("proc", "sys", "dev", "tmp", "run", "var/lib", "etc", "root"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
        )
        (root / "etc/group").write_text("root:x:0:\nkvm:x:106:\nnogroup:x:65534:\n")
        used_kib = int(subprocess.run(["du", "-sk", root], capture_output=True, check=True).stdout.split()[0])
        # Without a journal: it is thrown away. Owned by root inside whoever builds it.
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", root, disk,
             f"{used_kib * 12 // 10 + 2_000_000}k"],
            check=True,
        )  # fmt: skip


def _place(files: Iterable[Path], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for file in files:
        _copy(file, directory / file.name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        try:
            os.link(source.resolve(), target)  # nobody writes to it; mke2fs copies it
        except OSError:
            shutil.copy2(source, target)


def _programs(root: Path) -> None:
    programs = [Path(found) for name in ("qemu-system-x86_64", "qemu-img", "passt") if (found := which(name))]
    for program in programs:
        _copy(program, root / "usr/bin" / program.name)
    _libraries(programs, root)
    for folder in _QEMU_DATA:
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, root / folder, symlinks=True, dirs_exist_ok=True)


def _python(root: Path) -> None:
    """The interpreter and its library at the very paths they have here; ours and its packages in /opt/inn."""
    program = Path(sys.executable).resolve()
    _copy(program, root / program.relative_to(ROOT))
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(
        library,
        root / library.relative_to(ROOT),
        ignore=lambda folder, names: _NOT_NEEDED.intersection(names) | {n for n in names if n.endswith(".a")},
        dirs_exist_ok=True,
    )
    shutil.copytree(REPOSITORY / "src", root / "opt/inn/src", ignore=shutil.ignore_patterns("*.egg-info"))
    compiled = [*(root / library.relative_to(ROOT)).rglob("*.so")]
    for name, path in package_files(["innkeeper"]):
        _copy(path, root / "opt/inn/packages" / name)
        if path.suffix == ".so":
            compiled.append(path)
    _libraries([program, *compiled], root)
    # Compiled here: in an emulated guest it would take a minute.
    subprocess.run([sys.executable, "-m", "compileall", "-q", root / "opt/inn/src"], check=True)
    inn = root / "usr/bin/inn"
    inn.write_text(f"#!{program}\nfrom innkeeper.cli.entry import run\nrun()\n")
    inn.chmod(0o755)


def _libraries(programs: list[Path], root: Path) -> None:
    found, _ = elf.closure(programs, lambda name: elf.find_library(ROOT, name))
    for name, path in found.items():
        place = "lib64" if name.startswith("ld-linux") else "lib/x86_64-linux-gnu"
        _copy(path, root / place / name)


def _modules(place: Path) -> Path:
    """A directory with KVM's modules, numbered in the order in which to load them."""
    if not place.is_dir():
        run(_fetch_modules(place))
    return place


async def _fetch_modules(place: Path) -> None:
    runner = SystemRunner()
    with tempfile.TemporaryDirectory(prefix="inn-kernel-") as scratch:
        tree = PackageTree(Path(scratch) / "root")
        tree.root.mkdir()
        await add_packages(runner, tree, await kernel_packages(runner), Path(scratch) / "debs")
        (folder,) = [path for path in tree.root.glob("**/lib/modules/*") if path.is_dir()]
        known = kmodules.read_tree(folder)
        modules = kmodules.closure(_MODULES, lambda name: known.read(name) if name in known.files else None)
        draft = place.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for index, module in enumerate(modules):
            (draft / f"{index:02}-{module.name}.ko").write_bytes(module.data)
        draft.rename(place)
