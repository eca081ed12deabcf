"""Disks of instances: qcow2 files in the instance's own directory.

Every call of qemu-img names the format of what it reads, so that qemu-img never guesses it from content a
guest could have written (docs/system/images: "raw" probing and CVE-2008-2004).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from innkeeper.drivers.run import Runner
from innkeeper.drivers.storage.qcow2 import has_data_file, virtual_size, write_empty
from innkeeper.errors import BadImage, Failed, InnkeeperError, NoCapacity
from innkeeper.units import MiB, human_size

RESIZE_DEADLINE_S: Final = 30.0
# A copy of a terabyte over a slow disk; ended earlier when the verb is cancelled.
COPY_DEADLINE_S: Final = 6 * 3600.0
# What must stay free beside a new file: the store's own writes, logs, and the growth of others.
FREE_RESERVE_BYTES: Final = 64 * MiB


def create_blank(path: Path, size_bytes: int) -> None:
    require_free(path.parent, 1 * MiB)
    write_empty(path, size_bytes)


def create_overlay(path: Path, base: Path, size_bytes: int = 0) -> None:
    """A copy-on-write disk over the qcow2 file `base`; `size_bytes` may enlarge it (0: as the base)."""
    require_free(path.parent, 1 * MiB)
    write_empty(path, max(size_bytes, virtual_size(base)), backing=base, backing_format="qcow2")


async def copy(
    runner: Runner,
    source: Path,
    source_format: str,
    path: Path,
    on_percent: Callable[[float], None] | None = None,
) -> None:
    """An independent copy as qcow2, whatever the source's format; sparse stays sparse."""
    require_free(path.parent, os.stat(source).st_blocks * 512)
    await _convert(runner, ["-f", source_format, str(source)], path, on_percent)


async def copy_chain(
    runner: Runner,
    chain: Sequence[tuple[Path, str]],
    path: Path,
    on_percent: Callable[[float], None] | None = None,
) -> None:
    """An independent copy as qcow2 of a disk in layers, (file, format) with the top first. Which files those
    are is told to qemu-img, whatever their headers say."""
    require_free(path.parent, chain_bytes(chain))
    for layer, layer_format in chain:
        if layer_format == "qcow2" and has_data_file(layer):
            raise BadImage(f"{layer} refers to another file for its data", hint="it was not made so by us")
    await _convert(runner, [_json_name(chain)], path, on_percent)


def chain_bytes(chain: Sequence[tuple[Path, str]]) -> int:
    """What a copy of the disk may take: all that its layers have."""
    return sum(os.stat(layer).st_blocks * 512 for layer, _ in chain)


def _json_name(chain: Sequence[tuple[Path, str]]) -> str:
    node: dict[str, object] | None = None
    for layer, layer_format in reversed(chain):
        file = {"driver": "file", "filename": str(layer)}
        backing = {"backing": node} if layer_format == "qcow2" else {}
        node = {"driver": layer_format, "file": file, **backing}
    return f"json:{json.dumps(node)}"


async def _convert(
    runner: Runner, source: list[str], path: Path, on_percent: Callable[[float], None] | None
) -> None:
    def progress(line: str) -> None:
        # qemu-img -p prints "    (12.34/100%)"
        head = line.strip().lstrip("(").partition("/")[0]
        if on_percent and head.replace(".", "", 1).isdigit():
            on_percent(float(head))

    argv = ["qemu-img", "convert", "-p", "-O", "qcow2", *source, str(path)]
    await runner.run(argv, deadline_s=COPY_DEADLINE_S, on_line=progress)
    path.chmod(0o600)


async def grow(runner: Runner, path: Path, size_bytes: int) -> None:
    argv = ["qemu-img", "resize", "-q", "-f", "qcow2", str(path), str(size_bytes)]
    await runner.run(argv, deadline_s=RESIZE_DEADLINE_S)


def require_free(directory: Path, needed_bytes: int) -> None:
    """Raises NoCapacity when a file of `needed_bytes` would leave less than the reserve free."""
    free = shutil.disk_usage(directory).free
    if free < needed_bytes + FREE_RESERVE_BYTES:
        raise NoCapacity(
            f"Not enough disk space under {directory}: {human_size(needed_bytes)} needed beside a reserve of "
            f"{human_size(FREE_RESERVE_BYTES)}, {human_size(free)} free",
            hint="free some, or use another state directory (INNKEEPER_STATE)",
        )


def is_full(error: BaseException) -> bool:
    """Whether a file system, or a quota, has no room left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def failure_of(error: OSError, what: str) -> InnkeeperError:
    """The error of ours for one that the file system gave: `what` went wrong."""
    if is_full(error):
        return NoCapacity(f"{what}: no space left on the disk", hint="free some")
    return Failed(f"{what}: {error.strerror or error}")
