"""Guest RAM on disk: from a memory file into a file, and back.

Plain: a sparse file with everything at its own offset, so that reading it back is one copy within the
kernel. Compressed: a sequence of pieces, each with its offset and lengths, and an end mark, without
which the file is truncated. Only what the memory file has data for is looked at, and zeros are skipped:
of a VM with 4 GiB that has touched 200 MiB, 200 MiB are read.

All functions block; call them in a thread.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from innkeeper.errors import Failed, NoCapacity, Unsupported
from innkeeper.units import MiB

PIECE_BYTES: Final = 1 * MiB
# What is found to be zero is left out in blocks of this size: smaller ones cost more time than they save.
BLOCK_BYTES: Final = 16 * 1024
_ZEROS: Final = bytes(PIECE_BYTES)
_HEAD: Final = struct.Struct("<QII")  # offset, length in RAM, length in the file
_END: Final = 2**64 - 1
_LEVEL: Final = 1  # the highest speed; higher levels take longer than the disk

# bytes looked at so far; raises to give up
Progress = Callable[[int], None]


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what a sparse file has data for (lseek(2), SEEK_DATA)."""
    at, size = 0, os.fstat(fd).st_size
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here to the end
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at - start


def data_bytes(fd: int) -> int:
    return sum(length for _, length in extents(fd))


def save(ram: int, path: Path, *, compress: bool, progress: Progress) -> None:
    """Write `ram` to a new file, synced. Raises NoCapacity when the disk is full."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if compress:
            _save_compressed(ram, fd, progress)
        else:
            os.ftruncate(fd, os.fstat(ram).st_size)
            for offset, data in _pieces(ram, progress):
                _write_blocks(fd, offset, data)
        os.fsync(fd)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoCapacity(f"No space left for guest RAM under {path.parent}", hint="free some") from None
        raise Failed(f"Cannot write guest RAM to {path}: {error.strerror}") from error
    finally:
        os.close(fd)


def load(path: Path, ram: int, *, compressed: bool) -> None:
    """Fill the empty memory file `ram`. Raises Failed when the file is damaged."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror}") from error
    try:
        if compressed:
            _load_compressed(path, fd, ram)
            return
        if os.fstat(fd).st_size != os.fstat(ram).st_size:
            raise Failed(f"{path} is damaged: its size is not that of the guest's RAM")
        mapped = _mapping(ram)
        for start, length in extents(fd):
            if mapped is not None:
                _read_into(path, fd, mapped, start, length)
                continue
            os.lseek(ram, start, os.SEEK_SET)
            done = 0
            while done < length:
                count = os.sendfile(ram, fd, start + done, length - done)
                if count == 0:
                    raise Failed(f"{path} is truncated")
                done += count
    except OSError as error:
        raise Failed(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


def _mapping(ram: int) -> mmap.mmap | None:
    """Memory of huge pages can be read and mapped, and not written (hugetlbfs has no write)."""
    huge = os.fstat(ram).st_blksize > mmap.PAGESIZE
    return mmap.mmap(ram, os.fstat(ram).st_size) if huge else None


def _read_into(path: Path, fd: int, mapped: mmap.mmap, start: int, length: int) -> None:
    view = memoryview(mapped)
    try:
        done = 0
        while done < length:
            count = os.preadv(fd, [view[start + done : start + length]], start + done)
            if count == 0:
                raise Failed(f"{path} is truncated")
            done += count
    finally:
        view.release()


def _pieces(ram: int, progress: Progress) -> Iterator[tuple[int, bytes]]:
    """What is not all zero, with its offset."""
    seen = 0
    for start, length in extents(ram):
        for offset in range(start, start + length, PIECE_BYTES):
            data = os.pread(ram, min(PIECE_BYTES, start + length - offset), offset)
            seen += len(data)
            if data != (_ZEROS if len(data) == PIECE_BYTES else _ZEROS[: len(data)]):
                yield offset, data
            progress(seen)


def _write_blocks(fd: int, offset: int, data: bytes) -> None:
    """Runs of blocks with something in them."""
    zeros = _ZEROS[:BLOCK_BYTES]
    run = -1
    for at in range(0, len(data), BLOCK_BYTES):
        empty = data.startswith(zeros, at)
        if empty and run >= 0:
            _pwrite(fd, memoryview(data)[run:at], offset + run)
            run = -1
        elif not empty and run < 0:
            run = at
    if run >= 0:
        _pwrite(fd, memoryview(data)[run:], offset + run)


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def _save_compressed(ram: int, fd: int, progress: Progress) -> None:
    from zstandard import ZstdCompressor

    compressor = ZstdCompressor(level=_LEVEL, write_checksum=True)
    at = 0
    for offset, data in _pieces(ram, progress):
        packed = compressor.compress(data)
        record = _HEAD.pack(offset, len(data), len(packed)) + packed
        _pwrite(fd, memoryview(record), at)
        at += len(record)
    _pwrite(fd, memoryview(_HEAD.pack(_END, 0, 0)), at)


def _load_compressed(path: Path, fd: int, ram: int) -> None:
    try:
        from zstandard import ZstdDecompressor, ZstdError
    except ImportError as error:
        raise Unsupported(
            f"{path} is compressed, and the Python package zstandard is missing", hint="install it"
        ) from error
    decompressor = ZstdDecompressor()
    mapped = _mapping(ram)
    with os.fdopen(os.dup(fd), "rb", buffering=PIECE_BYTES) as file:
        while True:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                raise Failed(f"{path} is truncated")
            offset, length, packed = _HEAD.unpack(head)
            if offset == _END:
                return
            if length > PIECE_BYTES or packed > 2 * PIECE_BYTES:
                raise Failed(f"{path} is damaged")
            try:
                data = decompressor.decompress(file.read(packed), max_output_size=length)
            except ZstdError as error:
                raise Failed(f"{path} is damaged: {error}") from None
            if len(data) != length:
                raise Failed(f"{path} is damaged")
            if mapped is not None:
                mapped[offset : offset + length] = data
            else:
                _pwrite(ram, memoryview(data), offset)
