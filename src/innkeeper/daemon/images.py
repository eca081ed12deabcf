"""Images by name: builds and imports them, and removes the files nobody names any more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from innkeeper.api.deps import GuestOs, Progress
from innkeeper.clock import Clock
from innkeeper.drivers.run import Runner
from innkeeper.errors import BadRequest, Unsupported
from innkeeper.images.imagedir import ImageManifest, remove_image
from innkeeper.paths import Paths
from innkeeper.spec.image import ImageRecord
from innkeeper.store.repo import Repo

RECIPES = ("tiny", "debian")


class Images:
    """See api.deps.ImageService."""

    def __init__(self, paths: Paths, runner: Runner, repo: Repo, clock: Clock) -> None:
        self._paths, self._runner, self._repo, self._clock = paths, runner, repo, clock

    async def build(
        self,
        recipe: str,
        name: str,
        progress: Progress,
        *,
        packages: Sequence[str] = (),
        size_bytes: int | None = None,
        arch: str = "x86_64",
    ) -> ImageRecord:
        # Builders pull in much that a daemon without builds never needs.
        if recipe == "tiny":
            if packages or size_bytes is not None:
                raise BadRequest(
                    "The tiny image takes no packages and has no disk",
                    hint="use the recipe debian for both",
                )
            from innkeeper.images.tiny import build_tiny

            manifest = await build_tiny(self._paths.images, self._runner, progress, arch=arch)
        elif recipe == "debian" and arch != "x86_64":
            raise Unsupported(f"The debian image is built for x86_64 only, not for {arch}", hint="build tiny")
        elif recipe == "debian":
            from innkeeper.images.debian import DISK_BYTES, build_debian

            manifest = await build_debian(
                self._paths.images,
                self._runner,
                progress,
                packages=packages,
                disk_bytes=DISK_BYTES if size_bytes is None else size_bytes,
            )
        else:
            raise BadRequest(f"No image recipe {recipe!r}", hint=f"there are: {', '.join(RECIPES)}")
        return await self._name(name, manifest)

    async def import_(
        self, name: str, path: Path, progress: Progress, *, guest_os: GuestOs = "linux"
    ) -> ImageRecord:
        from innkeeper.images.importing import import_disk

        manifest = await import_disk(path, self._paths.images, self._runner, progress, guest_os=guest_os)
        return await self._name(name, manifest)

    async def remove(self, name: str) -> None:
        stored = await self._repo.image(name)
        await self._repo.delete_image(name)
        used = {image.id for image in await self._repo.images()}
        used |= {view.record.image_id for view in await self._repo.instances()}
        if stored.value.id not in used:
            await asyncio.to_thread(remove_image, self._paths.images, stored.value.id)

    async def _name(self, name: str, manifest: ImageManifest) -> ImageRecord:
        """Point `name` at the image; a name that was there now means the new one."""
        record = ImageRecord(
            name=name,
            id=manifest.id,
            kind=manifest.kind,
            architecture=manifest.architecture,
            boot=manifest.boot,
            os=manifest.os,
            agent=manifest.agent,
            size_bytes=sum(file.size_bytes for file in manifest.files.values()),
            min_memory_bytes=manifest.min_memory_bytes,
            origin=manifest.origin.model_dump(mode="json"),
            created_at=self._clock.time(),
        )
        before = await self._repo.find_image(name)
        await self._repo.put_image(record, replaces=before.kv if before else None)
        return record
