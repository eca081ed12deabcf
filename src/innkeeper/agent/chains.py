"""Which files make up each disk of an instance or snapshot, top layer first.

Kept beside the disks, in a file only the daemon writes: neither the backing file named in a qcow2
header nor what a disk's content looks like may decide what is opened, since a guest (or a QEMU it
broke) can write both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from innkeeper.engine.base import Layer
from innkeeper.errors import Failed
from innkeeper.paths import InstanceFiles, SnapshotFiles

Chains = Mapping[str, tuple[Layer, ...]]


def write(files: InstanceFiles | SnapshotFiles, chains: Chains) -> None:
    """Replace the instance's chains, whole or not at all, also over a power cut."""
    data = {
        disk: [{"path": str(layer.path), "format": layer.format} for layer in layers]
        for disk, layers in chains.items()
    }
    draft = files.chains.with_suffix(".tmp")
    with draft.open("w") as file:
        json.dump(data, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, files.chains)
    directory = os.open(files.directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


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
