"""Images built once for all runs of the tests, and state directories made from them by hard links."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Literal

from helpers import run
from innkeeper.clock import SystemClock
from innkeeper.drivers.run import SystemRunner
from innkeeper.images.imagedir import load_manifest
from innkeeper.spec.image import ImageRecord
from innkeeper.store.repo import Repo
from innkeeper.store.sqlite import SqliteStore

Recipe = Literal["tiny", "debian", "tiny-arm64", "tiny-riscv64"]

SOURCES = Path(__file__).parents[2] / "src" / "innkeeper" / "images"
# What has no part in building an image; else a change anywhere would cost a build.
_ELSEWHERE = {
    "tiny": ("inspect.py", "importing.py", "debian", "bootdisk.py", "aptsources.py", "foreign.py"),
    "tiny-arm64": ("inspect.py", "importing.py", "debian", "bootdisk.py", "aptsources.py"),
    "tiny-riscv64": ("inspect.py", "importing.py", "debian", "bootdisk.py"),
    "debian": ("inspect.py", "importing.py", "tiny"),
}
# Files of a state directory that belong to its daemon's life, not to what it knows.
_PASSING = {"run", "instances", "daemon.log", "store.db.lock", "images"}


def cache_directory() -> Path:
    return Path(os.environ.get("INNKEEPER_TEST_CACHE") or Path.home() / ".cache" / "innkeeper-test")


def built_image(recipe: Recipe) -> Path:
    """The directory of the image, built if the builder's sources have changed since the last time."""
    place = cache_directory() / f"{recipe}-{_sources_hash(recipe)}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several runs of the tests build once
        found = _image_in(place)
        if found is None:
            _drop_older(recipe, keep=place)
            run(_build(recipe, place))
            found = _image_in(place)
    assert found is not None
    return found


def _image_in(place: Path) -> Path | None:
    found = [path.parent for path in place.glob("*/manifest.json")]
    return found[0] if found else None


async def _build(recipe: Recipe, place: Path) -> None:
    runner = SystemRunner()
    if recipe.startswith("tiny"):
        from innkeeper.images.tiny import build_tiny

        arch = recipe.removeprefix("tiny").removeprefix("-") or "x86_64"
        await build_tiny(place, runner, lambda stage, fraction, detail: None, arch=arch)
    else:
        from innkeeper.images.debian import build_debian

        await build_debian(place, runner, lambda stage, fraction, detail: None)


def _sources_hash(recipe: Recipe) -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        counts = not path.name.startswith(_ELSEWHERE[recipe]) and "__pycache__" not in path.parts
        if path.is_file() and counts:
            digest.update(f"{path.relative_to(SOURCES)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _drop_older(recipe: Recipe, keep: Path) -> None:
    """Images of earlier sources take 80 MiB to 1 GiB each: the two newest are enough."""
    names = f"{recipe}-{'[0-9a-f]' * 16}"
    older = [path for path in keep.parent.glob(names) if path.is_dir() and path != keep]
    for path in sorted(older, key=lambda path: path.stat().st_mtime)[:-1]:
        shutil.rmtree(path, ignore_errors=True)


def register(state: Path, name: str, image: Path) -> None:
    """Put an image into a state directory that no daemon uses now, under `name`."""
    link_image(image, state / "images")
    run(_register(state, name, image))


async def _register(state: Path, name: str, image: Path) -> None:
    manifest = load_manifest(image)
    store = await SqliteStore.open(state / "store.db", SystemClock())
    try:
        record = ImageRecord(
            name=name,
            id=manifest.id,
            kind=manifest.kind,
            architecture=manifest.architecture,
            boot=manifest.boot,
            agent=manifest.agent,
            size_bytes=sum(file.size_bytes for file in manifest.files.values()),
            min_memory_bytes=manifest.min_memory_bytes,
            origin=manifest.origin.model_dump(mode="json"),
            created_at=time.time(),
        )
        await Repo(store).put_image(record)
    finally:
        await store.close()


def link_image(image: Path, images: Path, *, copy: bool = False) -> None:
    """By hard links where that can be done: nobody writes to an image."""
    images.mkdir(mode=0o700, exist_ok=True)
    target = images / image.name
    target.mkdir()
    for file in image.iterdir():
        try:
            if copy:
                raise OSError
            os.link(file, target / file.name)
        except OSError:
            shutil.copy2(file, target / file.name)


def copy_state(template: Path, state: Path, *, owner: int | None = None) -> None:
    """A state directory like `template`, which no daemon may be using; of its own user, if asked for."""
    state.mkdir(mode=0o700, exist_ok=True)
    for entry in template.iterdir():
        if entry.name in _PASSING:
            continue
        if entry.is_dir():
            shutil.copytree(entry, state / entry.name)
        else:
            shutil.copy2(entry, state / entry.name)
    for image in (template / "images").iterdir():
        link_image(image, state / "images", copy=owner is not None)
    if owner is not None:
        for path in [state, *state.rglob("*")]:
            os.chown(path, owner, owner)
