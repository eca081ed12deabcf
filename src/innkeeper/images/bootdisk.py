"""Put together a disk that boots from BIOS and from UEFI: GPT, BIOS boot partition, ESP and root.

Everything is done on plain files, without mounts or loop devices, so any user can. The boot code is
GRUB's; what `grub-install` would write is written here: `boot.img` into the first sector, with the place
of `core.img`, and `core.img` into the BIOS boot partition, with the place of its own second sector.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from innkeeper.drivers.run import Runner
from innkeeper.errors import Failed
from innkeeper.units import MiB

SECTOR: Final = 512
# Partition types: https://uapi-group.org/specifications/specs/discoverable_partitions_specification/
_TYPE_BIOS_BOOT: Final = "21686148-6449-6E6F-744E-656564454649"
_TYPE_ESP: Final = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_TYPE_ROOT_X86_64: Final = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
_DEADLINE_S: Final = 300.0

# Offsets in boot.img and in the first sector of core.img: GRUB, include/grub/i386/pc/boot.h.
_BOOT_CODE_BYTES: Final = 440
_KERNEL_SECTOR: Final = 0x5C
_DRIVE_CHECK: Final = 0x66
_FIRST_BLOCKLIST: Final = SECTOR - 12


@dataclass(frozen=True)
class Layout:
    """Where the partitions lie, in bytes. The root is last, so that it can grow."""

    size_bytes: int
    bios_start: int = 1 * MiB
    bios_bytes: int = 1 * MiB
    esp_start: int = 2 * MiB
    esp_bytes: int = 48 * MiB

    @property
    def root_start(self) -> int:
        return self.esp_start + self.esp_bytes

    @property
    def root_bytes(self) -> int:
        """Up to the last whole MiB: the backup partition table lies behind it."""
        return (self.size_bytes - MiB - self.root_start) // MiB * MiB

    def sfdisk_script(self) -> str:
        rows = (
            (self.bios_start, self.bios_bytes, _TYPE_BIOS_BOOT, "bios"),
            (self.esp_start, self.esp_bytes, _TYPE_ESP, "esp"),
            (self.root_start, self.root_bytes, _TYPE_ROOT_X86_64, "root"),
        )
        lines = [
            f'start={start // SECTOR}, size={size // SECTOR}, type={kind}, name="{name}"'
            for start, size, kind, name in rows
        ]
        return "\n".join(["label: gpt", "unit: sectors", *lines]) + "\n"


@dataclass(frozen=True)
class Parts:
    """The files a disk is made of. `root` is a file system of exactly `Layout.root_bytes`."""

    boot_img: Path
    core_img: Path
    efi_program: Path
    root: Path


def patched_boot(boot_img: bytes, core_sector: int) -> bytes:
    """The boot code for the first sector, loading `core_sector`. Raises ValueError for another file."""
    if len(boot_img) != SECTOR or boot_img[-2:] != b"\x55\xaa":
        raise ValueError("not a boot.img of GRUB")
    code = bytearray(boot_img[:_BOOT_CODE_BYTES])
    struct.pack_into("<Q", code, _KERNEL_SECTOR, core_sector)
    # Two NOPs for the jump over the check of the drive number: some BIOSes pass a wrong one for disks.
    code[_DRIVE_CHECK : _DRIVE_CHECK + 2] = b"\x90\x90"
    return bytes(code)


def patched_core(core_img: bytes, core_sector: int) -> bytes:
    """`core.img` told where its second sector lies. Raises ValueError for another file."""
    sectors = -(-len(core_img) // SECTOR)
    if sectors < 2:
        raise ValueError("not a core.img of GRUB")
    core = bytearray(core_img)
    start, count, segment = struct.unpack_from("<QHH", core, _FIRST_BLOCKLIST)
    if segment != 0x820 or count != sectors - 1:
        raise ValueError(f"core.img has an unexpected block list ({start}, {count}, {segment:#x})")
    struct.pack_into("<Q", core, _FIRST_BLOCKLIST, core_sector + 1)
    return bytes(core)


async def assemble(runner: Runner, parts: Parts, layout: Layout, disk: Path) -> None:
    """Write the raw disk `disk` (sparse). Raises Failed when the boot code is not what is expected."""
    _make_sparse(disk, layout.size_bytes)
    await runner.run(
        ["sfdisk", "--quiet", str(disk)], stdin=layout.sfdisk_script().encode(), deadline_s=_DEADLINE_S
    )
    esp = disk.with_name("esp.img")
    _make_sparse(esp, layout.esp_bytes)
    env = {"MTOOLS_SKIP_CHECK": "1"}
    for argv in (
        ["mformat", "-i", str(esp), "-F", "-c", "1", "-v", "ESP", "::"],
        ["mmd", "-i", str(esp), "::/EFI", "::/EFI/BOOT"],
        ["mcopy", "-i", str(esp), str(parts.efi_program), "::/EFI/BOOT/BOOTX64.EFI"],
    ):
        await runner.run(argv, deadline_s=_DEADLINE_S, env=env)
    _fill(disk, parts, layout, esp)
    os.unlink(esp)


def _make_sparse(path: Path, size_bytes: int) -> None:
    with path.open("wb") as out:
        out.truncate(size_bytes)


def _fill(disk: Path, parts: Parts, layout: Layout, esp: Path) -> None:
    core_sector = layout.bios_start // SECTOR
    core = parts.core_img.read_bytes()
    if len(core) > layout.bios_bytes:
        raise Failed("GRUB's core image does not fit into its partition")
    try:
        boot, core = patched_boot(parts.boot_img.read_bytes(), core_sector), patched_core(core, core_sector)
    except ValueError as error:
        raise Failed(f"The boot loader of this release is not known: {error}") from error
    with disk.open("r+b") as out:
        out.write(boot)
        out.seek(layout.bios_start)
        out.write(core)
        for source, start in ((esp, layout.esp_start), (parts.root, layout.root_start)):
            _copy_sparse(source, out.fileno(), start)


def _copy_sparse(source: Path, target: int, start: int) -> None:
    """Copy the parts of `source` that hold data to offset `start` of `target`."""
    with source.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        position = 0
        while position < size:
            try:
                position = os.lseek(stream.fileno(), position, os.SEEK_DATA)
            except OSError:
                return  # ENXIO: only a hole is left
            end = os.lseek(stream.fileno(), position, os.SEEK_HOLE)
            while position < end:
                block = os.pread(stream.fileno(), min(4 * MiB, end - position), position)
                if block.strip(b"\0"):
                    os.pwrite(target, block, start + position)
                position += len(block)
