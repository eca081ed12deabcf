"""Content-addressed image directories: identity, atomic commit, verification, sweeping."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from innkeeper.errors import BadImage, NoCapacity, NotFound
from innkeeper.images import imagedir
from innkeeper.images.imagedir import (
    ImageDraft,
    ImageManifest,
    Origin,
    commit_image,
    kernel_name,
    load_manifest,
    remove_image,
    staging,
    sweep_staging,
    verify,
)


def draft(*, append: str = "quiet", tool: str = "test") -> ImageDraft:
    return ImageDraft(
        kind="tiny",
        boot="kernel",
        append=append,
        agent=True,
        min_memory_bytes=1 << 27,
        origin=Origin(tool=tool, innkeeper_version="0"),
        created_at=datetime.now(UTC),
    )


def commit(images: Path, content: bytes = b"kernel", what: ImageDraft | None = None) -> ImageManifest:
    with staging(images) as directory:
        (directory / "kernel").write_bytes(content)
        return commit_image(images, directory, what or draft())


def writable_again(path: Path) -> None:
    path.chmod(0o755)
    for file in path.iterdir():
        file.chmod(0o644)


def test_a_committed_image_is_complete_and_read_only(tmp_path: Path) -> None:
    manifest = commit(tmp_path)
    path = tmp_path / manifest.id
    assert sorted(os.listdir(path)) == ["kernel", "manifest.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o555
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o444}
    assert load_manifest(path) == verify(path) == manifest
    assert os.listdir(tmp_path) == [manifest.id]


def test_the_id_depends_on_content_and_boot_data_and_on_nothing_else(tmp_path: Path) -> None:
    first = commit(tmp_path)
    assert commit(tmp_path, what=draft(tool="another")).id == first.id
    assert commit(tmp_path, b"other").id != first.id
    assert commit(tmp_path, what=draft(append="debug")).id != first.id


def test_committing_again_keeps_the_image_that_is_there(tmp_path: Path) -> None:
    first = commit(tmp_path)
    assert commit(tmp_path, what=draft(tool="another")) == first


def test_committing_again_replaces_a_damaged_image(tmp_path: Path) -> None:
    path = tmp_path / commit(tmp_path).id
    writable_again(path)
    (path / "kernel").write_bytes(b"kernal")
    assert verify(tmp_path / commit(tmp_path).id).origin.tool == "test"


@pytest.mark.parametrize("damage", ["content", "missing", "manifest", "metadata", "no manifest"])
def test_verify_finds_damage(tmp_path: Path, damage: str) -> None:
    path = tmp_path / commit(tmp_path).id
    writable_again(path)
    text = (path / "manifest.json").read_text()
    if damage == "content":
        (path / "kernel").write_bytes(b"kernal")
    elif damage == "missing":
        (path / "kernel").unlink()
    elif damage == "manifest":
        (path / "manifest.json").write_text(text[:40])
    elif damage == "metadata":
        (path / "manifest.json").write_text(text.replace("quiet", "debug"))
    else:
        (path / "manifest.json").unlink()
    with pytest.raises(NotFound if damage == "no manifest" else BadImage) as caught:
        verify(path)
    assert "\n" not in str(caught.value)


def test_an_image_has_plain_files_only(tmp_path: Path) -> None:
    with pytest.raises(BadImage), staging(tmp_path) as directory:
        (directory / "kernel").symlink_to("/etc/hostname")
        commit_image(tmp_path, directory, draft())
    with pytest.raises(BadImage), staging(tmp_path) as directory:
        commit_image(tmp_path, directory, draft())
    assert os.listdir(tmp_path) == []


def test_removed_images_are_gone_and_names_are_checked(tmp_path: Path) -> None:
    manifest = commit(tmp_path)
    remove_image(tmp_path, manifest.id)
    assert os.listdir(tmp_path) == []
    for name in (manifest.id, "../somewhere", ""):
        with pytest.raises(NotFound):
            remove_image(tmp_path, name)


def test_sweep_takes_left_overs_and_leaves_living_builds(tmp_path: Path) -> None:
    dead = tmp_path / ".staging-dead"
    (dead / "work").mkdir(parents=True)
    (dead / "work").chmod(0o555)
    image = commit(tmp_path)
    with staging(tmp_path) as living:
        (living / "kernel").write_bytes(b"half")
        assert sweep_staging(tmp_path) == [".staging-dead"]
        assert (living / "kernel").exists()
    assert os.listdir(tmp_path) == [image.id]


def test_staging_goes_away_when_the_build_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staging(tmp_path) as directory:
        (directory / "kernel").write_bytes(b"half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imagedir, "_sync", full)
    with pytest.raises(NoCapacity, match="No space left"):
        commit(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_crash_before_the_rename_leaves_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        commit(tmp_path)
    assert os.listdir(tmp_path) == []


def test_bios_machines_get_the_uncompressed_kernel_where_there_is_one(tmp_path: Path) -> None:
    plain = commit(tmp_path)
    assert kernel_name(plain, bios=True) == "kernel"
    with staging(tmp_path) as directory:
        (directory / "kernel").write_bytes(b"kernel")
        (directory / "vmlinux").write_bytes(b"ELF")
        both = commit_image(tmp_path, directory, draft())
    assert kernel_name(both, bios=True) == "vmlinux"
    assert kernel_name(both, bios=False) == "kernel"
