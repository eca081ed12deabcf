"""The uncompressed kernel inside a bzImage.

QEMU can start an ELF kernel with a PVH entry point directly (BIOS machines only). That leaves out the
kernel's own decompression, about a fifth of a tiny guest's boot under TCG. The price: such a kernel
does not randomize its address (KASLR), as in other VM managers that boot ELF kernels.
"""

from __future__ import annotations

import bz2
import ctypes
import ctypes.util
import gzip
import lzma
import struct
from typing import Final

_PT_NOTE: Final = 4
# XEN_ELFNOTE_PHYS32_ENTRY, xen/include/public/elfnote.h: what makes a kernel bootable as PVH.
_PVH_NOTE: Final = 18
_LZ4_LEGACY_MAGIC: Final = b"\x02\x21\x4c\x18"
_LZ4_BLOCK_BYTES: Final = 8 << 20
# A kernel is some 50 MB; a header that promises more than this is damaged.
_VMLINUX_LIMIT_BYTES: Final = 512 << 20


class NoVmlinux(ValueError):
    """The file is no bzImage, or holds no kernel that can be unpacked here and booted as PVH."""


def is_bzimage(data: bytes) -> bool:
    """Boot sector signature and header magic of the x86 boot protocol."""
    return data[0x1FE:0x200] == b"\x55\xaa" and data[0x202:0x206] == b"HdrS"


def extract_vmlinux(image: bytes) -> bytes:
    """The ELF kernel in a bzImage (Documentation/x86/boot.rst, payload_offset). Raises NoVmlinux."""
    if not is_bzimage(image):
        raise NoVmlinux("not a bzImage")
    try:
        setup_sectors = image[0x1F1] or 4
        offset, length = struct.unpack_from("<II", image, 0x248)
        start = (setup_sectors + 1) * 512 + offset
        payload = image[start : start + length]
        (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
        kernel = _decompress(payload, size)
    except (struct.error, IndexError, EOFError, OSError, lzma.LZMAError) as error:
        raise NoVmlinux(f"damaged bzImage: {error}") from error
    if len(kernel) != size or not has_pvh_entry(kernel):
        raise NoVmlinux("the kernel has no PVH entry point")
    return kernel


def _decompress(payload: bytes, size: int) -> bytes:
    """`payload` ends in four bytes with the unpacked size; gzip has them as part of its own format."""
    if size > _VMLINUX_LIMIT_BYTES:
        raise NoVmlinux("the kernel is larger than any kernel")
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload)
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload, size)
    if payload.startswith(b"BZh"):
        return bz2.BZ2Decompressor().decompress(payload, size)
    if payload.startswith(_LZ4_LEGACY_MAGIC):
        return _lz4_legacy(payload[:-4])
    raise NoVmlinux("the kernel is compressed in a way not known here")


def _lz4_legacy(payload: bytes) -> bytes:
    """The `lz4 -l` format: blocks of up to 8 MiB, each after its packed length.

    Uses liblz4, which every system with apt has; Python's own library cannot read lz4.
    """
    name = ctypes.util.find_library("lz4")
    if name is None:
        raise NoVmlinux("liblz4 is not installed")
    decompress = ctypes.CDLL(name).LZ4_decompress_safe
    buffer = ctypes.create_string_buffer(_LZ4_BLOCK_BYTES)
    out = bytearray()
    position = len(_LZ4_LEGACY_MAGIC)
    while position + 4 <= len(payload):
        (length,) = struct.unpack_from("<I", payload, position)
        block = payload[position + 4 : position + 4 + length]
        position += 4 + length
        count = decompress(block, buffer, len(block), _LZ4_BLOCK_BYTES)
        if count < 0 or len(out) > _VMLINUX_LIMIT_BYTES:
            raise NoVmlinux("damaged lz4 data in the kernel")
        out += memoryview(buffer)[:count]
    return bytes(out)


def has_pvh_entry(kernel: bytes) -> bool:
    """Whether a 64-bit x86 ELF kernel carries the note that names its PVH entry point."""
    if kernel[:6] != b"\x7fELF\x02\x01":
        return False
    (table,) = struct.unpack_from("<Q", kernel, 0x20)
    size, count = struct.unpack_from("<HH", kernel, 0x36)
    for index in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", kernel, table + index * size)
        if kind == _PT_NOTE and _PVH_NOTE in _note_types(kernel[offset : offset + length]):
            return True
    return False


def _note_types(notes: bytes) -> set[int]:
    found = set()
    position = 0
    while position + 12 <= len(notes):
        name_size, data_size, kind = struct.unpack_from("<III", notes, position)
        found.add(kind)
        position += 12 + -(-name_size // 4) * 4 + -(-data_size // 4) * 4
    return found
