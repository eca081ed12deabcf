"""Look at disk images that nobody vouches for, without believing them.

What a file is comes from its own bytes, never from its name; `qemu-img` reads it under limits of memory
and time. The classic attacks are a backing file or an external data file that points at the host's own
files (CVE-2015-5163, CVE-2024-32498) and a header that makes `qemu-img` work without end (CVE-2015-5162).
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from innkeeper.drivers.run import UNTRUSTED_IMAGE, Runner
from innkeeper.errors import BadImage, CommandFailed, NotFound

Kind = Literal["qcow2", "raw-disk", "iso9660", "linux-kernel", "vmdk", "vdi", "vhdx", "unknown"]
DiskFormat = Literal["qcow2", "raw", "vmdk", "vdi", "vhdx"]

_SECTOR: Final = 512
_HEAD_BYTES: Final = 128 * 1024
_DEADLINE_S: Final = 60.0
_FORMATS: Final[dict[Kind, DiskFormat]] = {
    "qcow2": "qcow2", "raw-disk": "raw", "vmdk": "vmdk", "vdi": "vdi", "vhdx": "vhdx",
}  # fmt: skip
# (offset, magic): file systems that may fill a disk without a partition table.
_FILE_SYSTEMS: Final = (
    (0x438, b"\x53\xef"),  # ext2, ext3, ext4
    (0, b"XFSB"),
    (0x10040, b"_BHRfS_M"),  # btrfs
    (0, b"hsqs"),  # squashfs
    (3, b"NTFS    "),
    (0x218, b"LVM2 001"),
    (0, b"LUKS\xba\xbe"),
)
# qcow2 incompatible feature bits (docs/interop/qcow2.txt): 1 corrupt, 2 external data file.
_QCOW2_CORRUPT: Final = 1 << 1
_QCOW2_DATA_FILE: Final = 1 << 2


@dataclass(frozen=True)
class DiskInfo:
    """A disk image that may be used: no reference to any other file, whole as far as its format tells."""

    format: DiskFormat
    virtual_size_bytes: int
    file_size_bytes: int
    has_backing_file: bool = False
    has_data_file: bool = False
    encrypted: bool = False


def sniff(path: Path) -> Kind:
    """What the file is, by its content. Raises NotFound, or BadImage for what is no regular file."""
    return sniff_bytes(_head(path))


def is_blank(path: Path) -> bool:
    """Whether the file begins with nothing but zeros, as a new raw disk does."""
    return not _head(path).strip(b"\0")


def sniff_bytes(head: bytes) -> Kind:
    """`sniff` for the first 128 KiB of a file."""
    if head.startswith(b"QFI\xfb"):
        return "qcow2"
    if head.startswith((b"KDMV", b"COWD", b"# Disk DescriptorFile")):
        return "vmdk"
    if head[0x40:0x44] == b"\x7f\x10\xda\xbe":
        return "vdi"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if _is_kernel(head):
        return "linux-kernel"
    # Before the partition table: an ISO image that also starts from a USB stick has one of those too.
    if head[0x8001:0x8006] == b"CD001":
        return "iso9660"
    return "raw-disk" if _looks_like_disk(head) else "unknown"


def _is_kernel(head: bytes) -> bool:
    bzimage = head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == b"HdrS"
    arm64 = head[0x38:0x3C] == b"ARM\x64"
    # ELF: executables only (a kernel is one), not libraries or core dumps.
    elf = head.startswith(b"\x7fELF") and len(head) > 18 and head[16:18] in (b"\x02\x00", b"\x00\x02")
    return bzimage or arm64 or elf


def _looks_like_disk(head: bytes) -> bool:
    if head[_SECTOR : _SECTOR + 8] == b"EFI PART" or head[4096:4104] == b"EFI PART":
        return True
    if any(head[offset : offset + len(magic)] == magic for offset, magic in _FILE_SYSTEMS):
        return True
    # An MBR or a FAT boot sector: the signature alone is two bytes, so the status of each entry counts too.
    entries = [head[0x1BE + 16 * i : 0x1CE + 16 * i] for i in range(4)]
    return head[0x1FE:0x200] == b"\x55\xaa" and (
        all(entry[:1] in (b"\x00", b"\x80") for entry in entries)
        or head[0x36:0x39] == b"FAT"
        or head[0x52:0x55] == b"FAT"
    )


def _head(path: Path) -> bytes:
    """The first 128 KiB. Never blocks on a FIFO and never opens a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise NotFound(f"No such file: {path}") from None
    except OSError as error:
        raise BadImage(f"Cannot read {path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage(f"{path} is not a regular file", hint="give the path of an image file")
        if status.st_size == 0:
            raise BadImage(f"{path} is empty", hint="download or export it again")
        return os.pread(descriptor, _HEAD_BYTES, 0)
    finally:
        os.close(descriptor)


async def inspect_disk(path: Path, runner: Runner, *, force_format: Literal["raw"] | None = None) -> DiskInfo:
    """Check an untrusted disk image and say what it is. `force_format="raw"` takes any file as raw sectors.

    Raises NotFound, and BadImage for what is empty, truncated, damaged, no disk, or refers to other files.
    """
    kind = await asyncio.to_thread(sniff, path)
    size = (await asyncio.to_thread(os.stat, path)).st_size
    if force_format == "raw":
        kind = "raw-disk"
    disk_format = _FORMATS.get(kind)
    if disk_format is None:
        raise BadImage(f"{path.name} is not a disk image ({_describe(kind)})", hint=_hint(kind))
    if disk_format == "raw":
        return _raw(path, size)
    if disk_format == "qcow2":
        check_qcow2_header(await asyncio.to_thread(_head, path), path.name)
    info = await _qemu_img(runner, "info", disk_format, path)
    found = _disk_info(info, disk_format, size, path.name)
    if disk_format != "vmdk":  # qemu-img cannot check vmdk
        cluster = info.get("cluster-size")
        await _check(runner, disk_format, path, cluster if isinstance(cluster, int) else 2 << 20)
    return found


def _raw(path: Path, size: int) -> DiskInfo:
    if size % _SECTOR:
        raise BadImage(
            f"{path.name} is not a whole number of sectors ({size} bytes): it is truncated or no disk",
            hint="download or export it again",
        )
    return DiskInfo("raw", size, size)


def check_qcow2_header(head: bytes, name: str) -> None:
    """Refuse before qemu-img opens it: a backing or data file would be opened on this host."""
    if len(head) < 72:
        raise _truncated(name)
    version, backing_offset, backing_size = struct.unpack_from(">IQI", head, 4)
    if version not in (2, 3):
        raise BadImage(
            f"{name} has an unknown qcow2 version {version}", hint="convert it with: qemu-img convert"
        )
    if backing_offset or backing_size:
        raise _refers(name, "a backing file")
    if version == 3 and len(head) < 104:
        raise _truncated(name)
    features = struct.unpack_from(">Q", head, 72)[0] if version == 3 else 0
    if features & _QCOW2_DATA_FILE:
        raise _refers(name, "an external data file")
    if features & _QCOW2_CORRUPT:
        raise BadImage(f"{name} is marked as damaged", hint="repair a copy of it with: qemu-img check -r all")


def _disk_info(info: dict[str, Any], disk_format: DiskFormat, size: int, name: str) -> DiskInfo:
    """The facts from `qemu-img info`, refusing every reference to another file that it reports."""
    specific = info.get("format-specific")
    data = specific.get("data", {}) if isinstance(specific, dict) else {}
    if info.get("backing-filename") or info.get("full-backing-filename"):
        raise _refers(name, "a backing file")
    if data.get("data-file"):
        raise _refers(name, "an external data file")
    # A vmdk may be a description of other files; each of them is an extent.
    extents = data.get("extents", [])
    own = str(info.get("filename", ""))
    if len(extents) > 1 or any(extent.get("filename") != own for extent in extents):
        raise _refers(name, "other files for its extents")
    virtual = info.get("virtual-size")
    if info.get("format") != disk_format or not isinstance(virtual, int) or virtual <= 0:
        raise BadImage(f"{name} is not a usable {disk_format} image", hint="download or export it again")
    return DiskInfo(disk_format, virtual, size, encrypted=bool(info.get("encrypted")))


async def _check(runner: Runner, disk_format: DiskFormat, path: Path, cluster_bytes: int) -> None:
    report = await _qemu_img(runner, "check", disk_format, path)
    end = report.get("image-end-offset")
    size = (await asyncio.to_thread(os.stat, path)).st_size
    # The last cluster of a sound image may be written in part only, never be missing as a whole.
    if isinstance(end, int) and end - size >= cluster_bytes:
        raise _truncated(path.name)
    if report.get("corruptions") or report.get("check-errors"):
        raise BadImage(f"{path.name} is damaged or truncated", hint="download or export it again")


async def _qemu_img(runner: Runner, verb: str, disk_format: str, path: Path) -> dict[str, Any]:
    """One read-only qemu-img command under limits; the format is given, so that it guesses nothing."""
    target = {"driver": disk_format, "file": {"driver": "file", "filename": str(path.absolute())}}
    argv = ["qemu-img", verb, "--output=json", f"json:{json.dumps(target)}"]
    try:
        done = await runner.run(argv, deadline_s=_DEADLINE_S, limits=UNTRUSTED_IMAGE, check=False)
    except CommandFailed as error:
        raise BadImage(
            f"{path.name} cannot be examined in reasonable time", hint="it may be hostile"
        ) from error
    try:
        found = json.loads(done.stdout)
    except ValueError:
        raise BadImage(
            f"{path.name} is damaged or truncated ({done.complaint})", hint="download or export it again"
        ) from None
    if not isinstance(found, dict) or (verb == "info" and done.status != 0):
        raise BadImage(f"{path.name} is damaged or truncated", hint="download or export it again")
    return found


def _truncated(name: str) -> BadImage:
    return BadImage(f"{name} is truncated", hint="download or export it again")


def _refers(name: str, what: str) -> BadImage:
    return BadImage(
        f"{name} refers to {what}, which could be any file of this host",
        hint="make it independent first, where it comes from: qemu-img convert -O qcow2 OLD NEW",
    )


def _describe(kind: Kind) -> str:
    names = {"iso9660": "an ISO 9660 image", "linux-kernel": "a Linux kernel"}
    return names.get(kind, "no partition table and no file system known here")


def _hint(kind: Kind) -> str:
    hints = {
        "iso9660": "attach it as a CD: --cdrom FILE",
        "linux-kernel": "boot it with: --kernel FILE",
    }
    return hints.get(kind, "if it is raw sectors all the same: qemu-img convert -f raw -O qcow2 OLD NEW")
