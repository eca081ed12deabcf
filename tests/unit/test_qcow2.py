"""Our empty qcow2 files against qemu-img, which knows best."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from innkeeper.drivers.storage.qcow2 import virtual_size, write_empty
from innkeeper.errors import BadRequest, Failed, NoCapacity

QEMU_IMG = shutil.which("qemu-img") or ""
SIZES = [512, 1 << 20, (512 << 20) - 512, 512 << 20, (512 << 20) + 512, 10 << 30, 8 << 40]


def info(path: Path) -> dict[str, object]:
    subprocess.run([QEMU_IMG, "check", "-q", path], check=True, timeout=30)
    said = subprocess.run(
        [QEMU_IMG, "info", "--output=json", path], check=True, capture_output=True, timeout=30
    )
    answer: dict[str, object] = json.loads(said.stdout)
    return answer


@pytest.mark.parametrize("size", SIZES)
def test_qemu_finds_nothing_wrong(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk.qcow2"
    write_empty(path, size)
    assert info(path)["virtual-size"] == size == virtual_size(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 < 300_000


def test_an_overlay_shows_its_base_and_takes_writes(tmp_path: Path) -> None:
    base, top, raw = tmp_path / "base.qcow2", tmp_path / "top.qcow2", tmp_path / "raw"
    raw.write_bytes(b"base" * (1 << 18))
    subprocess.run([QEMU_IMG, "convert", "-O", "qcow2", raw, base], check=True, timeout=30)
    write_empty(top, 1 << 20, backing=base, backing_format="qcow2")
    said = info(top)
    assert said["backing-filename"] == str(base) and said["backing-filename-format"] == "qcow2"
    io = shutil.which("qemu-io") or ""
    subprocess.run([io, "-c", "write -P 7 65536 4096", str(top)], check=True, capture_output=True, timeout=30)
    subprocess.run([QEMU_IMG, "check", "-q", top], check=True, timeout=30)
    subprocess.run([QEMU_IMG, "convert", "-O", "raw", top, tmp_path / "out"], check=True, timeout=30)
    out = (tmp_path / "out").read_bytes()
    assert out[:65536] == b"base" * (1 << 14)
    assert out[65536 : 65536 + 4096] == b"\x07" * 4096


@pytest.mark.parametrize("size", [0, -512, 100])
def test_impossible_sizes(tmp_path: Path, size: int) -> None:
    with pytest.raises(BadRequest):
        write_empty(tmp_path / "disk.qcow2", size)


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_text("precious")
    with pytest.raises(Failed):
        write_empty(path, 1 << 20)
    assert path.read_text() == "precious"
    with pytest.raises(Failed, match="not a qcow2"):
        virtual_size(path)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(NoCapacity, match="No space left"):
        write_empty(tmp_path / "disk.qcow2", 1 << 20)
    assert not list(tmp_path.iterdir())
