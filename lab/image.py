"""The lab's image: `inn image build debian` with the packages of a hypervisor, kept until they change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from innkeeper.client.client import Client

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
