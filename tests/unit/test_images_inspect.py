"""Hostile and broken disk images: each is refused with one line, none is believed."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Literal

import pytest

from innkeeper.drivers.run import SystemRunner
from innkeeper.errors import BadImage, NotFound
from innkeeper.images.inspect import DiskInfo, Kind, inspect_disk, sniff, sniff_bytes

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
MBR = bytes(446) + bytes(64) + b"\x55\xaa"


def inspect(path: Path, force_format: Literal["raw"] | None = None) -> DiskInfo:
    return asyncio.run(inspect_disk(path, SystemRunner(), force_format=force_format))


def qemu_img(*argv: str) -> None:
    subprocess.run(["qemu-img", *argv], check=True, capture_output=True)


def make(path: Path, image_format: str = "qcow2", *options: str) -> Path:
    qemu_img("create", "-q", "-f", image_format, *options, str(path), "8M")
    return path


def refused(path: Path) -> str:
    with pytest.raises(BadImage) as caught:
        inspect(path)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"QFI\xfb\0\0\0\3", "qcow2"),
        (b"KDMV\1\0\0\0", "vmdk"),
        (b"# Disk DescriptorFile\nversion=1\n", "vmdk"),
        (b"<<< QEMU VM".ljust(0x40, b"\0") + b"\x7f\x10\xda\xbe", "vdi"),
        (b"vhdxfile", "vhdx"),
        (MBR, "raw-disk"),
        (bytes(512) + b"EFI PART", "raw-disk"),
        (bytes(0x438) + b"\x53\xef", "raw-disk"),
        (bytes(0x8001) + b"CD001", "iso9660"),
        (MBR + bytes(0x8001 - 512) + b"CD001", "iso9660"),
        (bytes(0x1FE) + b"\x55\xaa" + bytes(2) + b"HdrS", "linux-kernel"),
        (b"MZ".ljust(0x38, b"\0") + b"ARM\x64", "linux-kernel"),
        (b"\x7fELF\x02\x01".ljust(16, b"\0") + b"\x02\0\x3e\0", "linux-kernel"),
        (b"root:x:0:0:root:/root:/bin/sh\n" * 40, "unknown"),
        (b"\xff" * 510 + b"\x55\xaa", "unknown"),
        (b"\0" * 4096, "unknown"),
        (b"", "unknown"),
    ],
)
def test_sniff_goes_by_content(head: bytes, kind: Kind) -> None:
    assert sniff_bytes(head) == kind


def test_sniff_never_blocks_and_takes_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(BadImage):
            sniff(path)
    with pytest.raises(NotFound):
        sniff(tmp_path / "absent")


@needs_qemu_img
@pytest.mark.parametrize("image_format", ["qcow2", "vmdk", "vdi", "vhdx"])
def test_sound_images_are_accepted(tmp_path: Path, image_format: str) -> None:
    info = inspect(make(tmp_path / "disk.img", image_format))
    assert (info.format, info.virtual_size_bytes) == (image_format, 8 << 20)


def test_raw_has_to_look_like_a_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(MBR + bytes(1 << 20))
    assert inspect(path) == DiskInfo("raw", len(MBR) + (1 << 20), len(MBR) + (1 << 20))
    path.write_bytes(MBR + bytes(100))
    assert "truncated" in refused(path)
    path.write_bytes(b"hello" * 1024)
    assert "not a disk image" in refused(path)
    assert inspect(path, "raw").format == "raw"


def test_empty_files_kernels_and_cds_are_no_disks(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert "empty" in refused(path)
    path.write_bytes(bytes(0x8001) + b"CD001" + bytes(1 << 16))
    assert "--cdrom" in refused(path)
    path.write_bytes(bytes(0x1FE) + b"\x55\xaa" + bytes(2) + b"HdrS" + bytes(4096))
    assert "--kernel" in refused(path)


@needs_qemu_img
def test_references_to_other_files_are_refused(tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    make(tmp_path / "overlay", "qcow2", "-b", str(base), "-F", "qcow2")
    assert "backing file" in refused(tmp_path / "overlay")
    make(tmp_path / "split", "qcow2", "-o", f"data_file={tmp_path / 'data'}")
    assert "data file" in refused(tmp_path / "split")
    (tmp_path / "flat.vmdk").write_text(
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        'RW 8 FLAT "/etc/hostname" 0\nddb.adapterType = "ide"\n'
    )
    refused(tmp_path / "flat.vmdk")


@needs_qemu_img
def test_a_header_that_lies_never_reaches_the_file_it_names(tmp_path: Path) -> None:
    path = make(tmp_path / "disk")
    data = bytearray(path.read_bytes())
    name = b"/etc/hostname"
    data[0x300 : 0x300 + len(name)] = name
    struct.pack_into(">QI", data, 8, 0x300, len(name))
    path.write_bytes(data)
    assert "backing file" in refused(path)


@needs_qemu_img
@pytest.mark.parametrize("keep", [8, 71, 100, 600, 66_000, 200_000, 400_000])
def test_truncated_qcow2(tmp_path: Path, keep: int) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(os.urandom(1 << 20))
    whole = tmp_path / "whole"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(whole))
    assert inspect(whole).format == "qcow2"
    cut = tmp_path / "cut"
    cut.write_bytes(whole.read_bytes()[:keep])
    refused(cut)


@needs_qemu_img
@pytest.mark.parametrize("offset", range(4, 104, 4))
def test_wild_headers_end_in_a_plain_error_or_a_sound_answer(tmp_path: Path, offset: int) -> None:
    path = make(tmp_path / "disk")
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = b"\x7f\xff\xff\xff"
    path.write_bytes(data)
    try:
        inspect(path)
    except BadImage as error:
        assert "\n" not in str(error)
