"""Which files make up each disk of an instance or snapshot, top layer first.

Kept beside the disks, in a file only the daemon writes: neither the backing file named in a qcow2
header nor what a disk's content looks like may decide what is opened, since a guest (or a QEMU it
broke) can write both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Final

from innkeeper.drivers.storage.files import failure_of
from innkeeper.engine.base import Layer
from innkeeper.errors import Failed
from innkeeper.paths import InstanceFiles, SnapshotFiles

Chains = Mapping[str, tuple[Layer, ...]]
_BEFORE: Final = ".before"


def write(files: InstanceFiles | SnapshotFiles, chains: Chains) -> None:
    """Replace the instance's chains, whole or not at all, also over a power cut. Raises NoCapacity on a full
    disk and Failed for what else it says; they are as before then."""
    draft = files.chains.with_suffix(".tmp")
    try:
        _write_synced(draft, chains)
        os.replace(draft, files.chains)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise failure_of(error, f"Cannot note the disks in {files.chains}") from error
    directory = os.open(files.directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _write_synced(path: Path, chains: Chains) -> None:
    data = {
        disk: [{"path": str(layer.path), "format": layer.format} for layer in layers]
        for disk, layers in chains.items()
    }
    with path.open("w") as file:
        json.dump(data, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def change(files: InstanceFiles, chains: Chains, undo: ExitStack | AsyncExitStack) -> None:
    """Like `write`; `undo` puts back what was there, which takes no room on a disk that is full by then.
    `settle` when it is not to be undone any more."""
    before = files.chains.with_suffix(_BEFORE)
    before.unlink(missing_ok=True)
    os.link(files.chains, before)
    undo.callback(_put_back, before, files)
    write(files, chains)


def _put_back(before: Path, files: InstanceFiles) -> None:
    os.replace(before, files.chains)
    settle(files)  # where the two are one file still, rename(2) does nothing


def settle(files: InstanceFiles) -> None:
    files.chains.with_suffix(_BEFORE).unlink(missing_ok=True)


def read(files: InstanceFiles | SnapshotFiles) -> dict[str, tuple[Layer, ...]]:
    """Raises Failed when the file is missing or damaged."""
    try:
        data = json.loads(files.chains.read_text())
        return {
            disk: tuple(Layer(Path(layer["path"]), layer["format"]) for layer in layers)
            for disk, layers in data.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(
            f"{files.chains} is missing or damaged",
            hint="it says which files the disks consist of; restore it from a backup",
        ) from error
