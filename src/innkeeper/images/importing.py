"""Take a disk of the user's into the image store: inspected, converted to qcow2, immutable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from innkeeper.drivers.run import Runner
from innkeeper.drivers.storage import files as storage
from innkeeper.errors import NotFound
from innkeeper.images.imagedir import BootInfo, ImageDraft, ImageManifest, Origin, commit_image, staging
from innkeeper.images.inspect import inspect_disk
from innkeeper.units import MiB
from innkeeper.version import version

GuestOs = Literal["linux", "windows", "other"]
Progress = Callable[[str, float | None, str], None]

# Below this no system with a disk of its own gets through its boot.
MIN_MEMORY_BYTES = 64 * MiB


async def import_disk(
    source: Path, images_dir: Path, runner: Runner, progress: Progress, *, guest_os: GuestOs = "linux"
) -> ImageManifest:
    """A disk file in any format QEMU reads becomes an image. The source is only read; what system is on it is
    believed.

    Raises NotFound, BadImage for what is no disk or hostile, NoCapacity; nothing is left behind then.
    """
    if not source.is_file():
        raise NotFound(f"No such file: {source}", hint="give the path as it is on the daemon's host")
    started = time.monotonic()
    progress("inspect", 0.0, str(source))
    info = await inspect_disk(source, runner)
    with staging(images_dir) as directory:
        await storage.copy(
            runner,
            source,
            info.format,
            directory / "disk.qcow2",
            lambda percent: progress("copy", percent / 100, info.format),
        )
        progress("commit", None, "hashing")
        boot = BootInfo(
            kind="import",
            boot="disk",
            min_memory_bytes=MIN_MEMORY_BYTES,
            os=guest_os,
            disk_virtual_size_bytes=info.virtual_size_bytes,
        )
        draft = ImageDraft(
            **boot.model_dump(),
            origin=Origin(
                tool="import_disk",
                innkeeper_version=version(),
                build_seconds=round(time.monotonic() - started, 1),
                source=f"{source.name} ({info.format})",
            ),
            created_at=datetime.now(UTC),
        )
        manifest = await asyncio.to_thread(commit_image, images_dir, directory, draft)
    progress("done", 1.0, manifest.id)
    return manifest
