"""Images on disk: immutable, named by their content.

    <images_dir>/<id>/manifest.json     what it is and how to boot it
    <images_dir>/<id>/kernel, initrd, disk.qcow2, vmlinux (the kernel uncompressed, with a PVH entry)
    <images_dir>/.staging-<random>/     being built; locked (flock) by its builder while that lives

An image appears by one rename, complete and synced, or not at all. The id is a SHA-256 over the
files' hashes and what decides how they boot; where an image came from and when does not change it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from innkeeper.errors import BadImage, Failed, NoCapacity, NotFound

MANIFEST: Final = "manifest.json"
VMLINUX: Final = "vmlinux"
STAGING_PREFIX: Final = ".staging-"
# A manifest is a page of JSON; what is larger is not one of ours.
_MANIFEST_LIMIT_BYTES: Final = 1 << 20
_NO_SPACE: Final = {28, 122}  # ENOSPC, EDQUOT
_ID: Final = re.compile(r"[0-9a-f]{64}")
_FILE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageFile(_Model):
    """One file: SHA-256 in hex and size."""

    sha256: str
    size_bytes: int


class Origin(_Model):
    """Where an image came from. `packages` are exact versions; `source` is what was imported."""

    tool: str
    innkeeper_version: str
    packages: Mapping[str, str] = {}
    suites: tuple[str, ...] = ()
    build_seconds: float = 0.0
    source: str = ""


class BootInfo(_Model):
    """What decides how an image boots, and so is part of its identity.

    `append` is the kernel command line (boot="kernel" only); `append_tcg` is added to it where the
    guest runs under TCG: settings that gain time there and would cost safety or nothing elsewhere.
    """

    architecture: Literal["x86_64", "aarch64", "riscv64"] = "x86_64"
    kind: Literal["tiny", "debian", "import"]
    boot: Literal["kernel", "disk"]
    append: str = ""
    append_tcg: str = ""
    agent: bool = False
    min_memory_bytes: int
    disk_virtual_size_bytes: int = 0
    os: Literal["linux", "windows", "other"] = "linux"


class ImageDraft(BootInfo):
    """What a builder or importer says of an image that it has made in a staging directory."""

    origin: Origin
    created_at: datetime


class ImageManifest(ImageDraft):
    """A complete image, as `commit_image` wrote it."""

    id: str
    files: Mapping[str, ImageFile]


def kernel_name(manifest: ImageManifest, *, bios: bool) -> str | None:
    """Which file to give to `-kernel`: the uncompressed kernel starts faster but needs SeaBIOS or qboot.

    None for an image that boots from its disk.
    """
    if manifest.boot != "kernel":
        return None
    return VMLINUX if bios and VMLINUX in manifest.files else "kernel"


def image_id(boot: BootInfo, files: Mapping[str, ImageFile]) -> str:
    """SHA-256 in hex over the canonical JSON of the files and the boot data."""
    identity = {
        "files": {name: file.model_dump() for name, file in files.items()},
        "boot": {
            name: value
            for name in BootInfo.model_fields
            # Images made before there was this field keep their names.
            if (value := getattr(boot, name)) != "linux" or name != "os"
        },
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def staging(images_dir: Path) -> Iterator[Path]:
    """A directory to build an image in, locked while open; removed at the end unless committed.

    The lock is on the directory itself, so that it stays held across the rename of `commit_image`.
    Raises NoCapacity when the file system is full while building in it.
    """
    with _translated(images_dir):
        images_dir.mkdir(parents=True, exist_ok=True)
        path, lock = _locked_directory(images_dir)
        try:
            yield path
        finally:
            _remove_tree(path)
            os.close(lock)


def _locked_directory(images_dir: Path) -> tuple[Path, int]:
    while True:
        path = images_dir / f"{STAGING_PREFIX}{secrets.token_hex(8)}"
        path.mkdir(mode=0o755)
        lock = _try_lock(path)
        if lock is not None:
            return path, lock
        # A sweeper saw it between the two steps above and removes it: take another one.


def _try_lock(path: Path) -> int | None:
    """A descriptor holding the lock of a directory that still has this name, or None."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def sweep_staging(images_dir: Path) -> list[str]:
    """Remove what killed builds left; those of living builders stay. Returns the names removed."""
    removed = []
    for path in sorted(images_dir.glob(f"{STAGING_PREFIX}*")):
        lock = _try_lock(path)
        if lock is None:
            continue
        try:
            _remove_tree(path)
            removed.append(path.name)
        finally:
            os.close(lock)
    return removed


def commit_image(images_dir: Path, staging_dir: Path, draft: ImageDraft) -> ImageManifest:
    """Give what is in `staging_dir` its id and move it into place; hashes every file, so it takes a while.

    An image of that id that is there already and sound is returned as it is; a damaged one is
    replaced. Raises BadImage for an empty staging directory, NoCapacity when the disk is full.
    """
    with _translated(images_dir):
        files = {
            path.name: hash_file(path) for path in sorted(staging_dir.iterdir()) if path.name != MANIFEST
        }
        if not files:
            raise BadImage("The image has no files")
        fields = {name: getattr(draft, name) for name in ImageDraft.model_fields}
        manifest = ImageManifest(**fields, id=image_id(draft, files), files=files)
        final = images_dir / manifest.id
        if final.exists():
            with contextlib.suppress(BadImage):
                return verify(final)
            remove_image(images_dir, manifest.id)
        _seal(staging_dir, manifest)
        try:
            os.rename(staging_dir, final)
        except OSError:
            # Somebody else finished the same image at the same moment.
            if final.is_dir():
                return load_manifest(final)
            raise
        _sync(images_dir)
        return manifest


def _seal(directory: Path, manifest: ImageManifest) -> None:
    """Write the manifest, make everything read-only and durable."""
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    for path in directory.iterdir():
        path.chmod(0o444)
        _sync(path)
    directory.chmod(0o555)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> ImageFile:
    """Hash and size of a regular file. Raises BadImage for anything else."""
    if not _FILE_NAME.fullmatch(path.name) or path.is_symlink() or not path.is_file():
        raise BadImage(f"Not a file an image can have: {path.name!r}")
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return ImageFile(sha256=digest.hexdigest(), size_bytes=stream.tell())


def load_manifest(path: Path) -> ImageManifest:
    """The manifest of the image directory `path`, without reading its files.

    Raises NotFound when there is none, BadImage when it is damaged or names another image.
    """
    try:
        with (path / MANIFEST).open("rb") as stream:
            text = stream.read(_MANIFEST_LIMIT_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"No image at {path}", hint="`inn image list` shows those there are") from None
    except OSError as error:
        raise BadImage(f"Cannot read the manifest of image {path.name}: {error.strerror}") from error
    try:
        manifest = ImageManifest.model_validate_json(text)
    except ValidationError as error:
        raise _damaged(path, f"its manifest is not valid ({error.error_count()} errors)") from error
    if manifest.id != image_id(manifest, manifest.files):
        raise _damaged(path, "its manifest does not match its id")
    if _ID.fullmatch(path.name) and path.name != manifest.id:
        raise _damaged(path, "it lies under another image's id")
    return manifest


def verify(path: Path) -> ImageManifest:
    """Read everything again and compare. Raises BadImage, saying which file differs."""
    manifest = load_manifest(path)
    for name, expected in manifest.files.items():
        if not (path / name).exists():
            raise _damaged(path, f"{name} is missing")
        if hash_file(path / name) != expected:
            raise _damaged(path, f"{name} has changed")
    return manifest


def _damaged(path: Path, why: str) -> BadImage:
    return BadImage(f"Image {path.name[:12]} is damaged: {why}", hint="remove it and build or pull it again")


def remove_image(images_dir: Path, image: str) -> None:
    """Delete an image; running VMs keep the files they have open. Raises NotFound."""
    if not _ID.fullmatch(image):
        raise NotFound(f"No image {image!r}", hint="`inn image list` shows those there are")
    gone = images_dir / f"{STAGING_PREFIX}{secrets.token_hex(8)}"
    with _translated(images_dir):
        try:
            # It vanishes at once; a crash from here on leaves work for `sweep_staging` only.
            os.rename(images_dir / image, gone)
        except FileNotFoundError:
            raise NotFound(f"No image {image[:12]}", hint="`inn image list` shows those there are") from None
        _remove_tree(gone)


def _remove_tree(path: Path) -> None:
    if not path.exists():
        return
    for directory, _, _ in os.walk(path):
        os.chmod(directory, 0o700)
    shutil.rmtree(path)


@contextlib.contextmanager
def _translated(images_dir: Path) -> Iterator[None]:
    """Errors of the file system in this project's terms."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NoCapacity(
                f"No space left for images in {images_dir}", hint="free some, or remove images: inn image rm"
            ) from error
        raise Failed(f"Cannot write images in {images_dir}: {error.strerror or error}") from error


def describe(manifest: ImageManifest) -> dict[str, Any]:
    """The manifest as plain JSON values."""
    return manifest.model_dump(mode="json")
