"""The lab's image: `inn image build debian` with the packages of a hypervisor, kept until they change."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from innkeeper.client.client import Client
from innkeeper.drivers.run import which
from innkeeper.errors import Failed

# The kernel's own packages come with the recipe. numactl: where a page lies, by another program than ours.
PACKAGES: Final = (
    "qemu-system-x86", "qemu-utils", "passt", "nftables", "dnsmasq-base", "python3", "numactl",
)  # fmt: skip
SIZE: Final = "6GiB"
_PREFIX: Final = "lab-"
_BUILDERS: Final = ("debian*.py", "bootdisk.py", "aptsources.py", "files/debian-*")


def image_name() -> str:
    """Named by what it is made of, so that a change makes another one."""
    folder = Path(__file__).resolve().parents[1] / "src/innkeeper/images"
    digest = hashlib.sha256(f"{PACKAGES} {SIZE}".encode())
    for pattern in _BUILDERS:
        for path in sorted(folder.glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"{_PREFIX}{digest.hexdigest()[:12]}"


def ensure_image(client: Client, on_progress: Callable[[dict[str, Any]], object]) -> str:
    """The image's name, built if there is none; those of earlier sources are removed."""
    name = image_name()
    known = {image["name"] for image in client.images.list()}
    for old in known - {name}:
        if old.startswith(_PREFIX):
            client.images.remove(old)
    if name not in known:
        client.images.build("debian", name=name, packages=PACKAGES, size=SIZE, on_progress=on_progress)
    return name


@dataclass(frozen=True)
class Kernel:
    """The image's own, for a direct boot; `append` is the command line that its boot loader has for it."""

    kernel: Path
    initrd: Path
    append: str


def kernel_of(disk: Path, directory: Path) -> Kernel:
    """Taken out of the image's root file system, and kept in a folder of `directory` named after the image.
    Raises Failed when it has none."""
    place = directory / f"boot-{disk.parent.name[:16]}"
    if not place.is_dir():
        for old in directory.glob("boot-*"):
            shutil.rmtree(old)
        draft = place.with_suffix(".draft")
        draft.mkdir(parents=True)
        raw = draft / "disk.raw"  # sparse
        _run("qemu-img", "convert", "-O", "raw", str(disk), str(raw))
        system = f"{raw}?offset={_root_start(raw)}"
        names = _debugfs(system, "ls -p /boot").split("/")
        for kind, name in (("vmlinuz-", "kernel"), ("initrd.img-", "initrd")):
            newest = max((one for one in names if one.startswith(kind)), default="")
            _debugfs(system, f"dump /boot/{newest} {draft / name}")
            if not (draft / name).is_file() or not (draft / name).stat().st_size:
                raise Failed(f"the lab's image has no /boot/{kind}*")
        (draft / "grub.cfg").write_text(_debugfs(system, "cat /boot/grub/grub.cfg"))
        raw.unlink()
        draft.rename(place)
    return Kernel(place / "kernel", place / "initrd", command_line((place / "grub.cfg").read_text()))


def command_line(config: str) -> str:
    """What GRUB gives to the kernel. Raises Failed for a configuration without one."""
    for line in config.splitlines():
        words = line.split(None, 2)
        if words[:1] == ["linux"]:
            return words[2].strip() if len(words) > 2 else ""
    raise Failed("the boot loader's configuration of the lab's image has no kernel")


def _root_start(raw: Path) -> int:
    """Of the largest partition, in bytes."""
    table = json.loads(_run("sfdisk", "--json", str(raw)))["partitiontable"]
    largest = max(table["partitions"], key=lambda one: int(one["size"]))
    return int(largest["start"]) * int(table["sectorsize"])


def _debugfs(system: str, request: str) -> str:
    """debugfs(8) ends with 0 whatever becomes of a request."""
    return _run("debugfs", "-R", request, system)


def _run(name: str, *words: str) -> str:
    program = which(name)
    if program is None:
        raise Failed(f"{name} is not installed", hint="make setup")
    done = subprocess.run([program, *words], capture_output=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{name} failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout.decode()
