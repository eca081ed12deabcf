"""Disk layers that nobody refers to any more.

A file is in use while a chain of any instance, snapshot or template, a running QEMU's plan, or a moment
names it.
Counting by looking at all of them needs no counter that a crash could leave wrong. What is in doubt stays:
`inn doctor` names it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from innkeeper.agent import chains
from innkeeper.agent.context import Context
from innkeeper.drivers.storage.qcow2 import is_untouched
from innkeeper.engine import plan_file
from innkeeper.engine.base import LaunchPlan
from innkeeper.errors import Failed
from innkeeper.paths import InstanceFiles, Paths, RuntimeFiles, SnapshotFiles

log = logging.getLogger("innkeeper.agent")

# The name of a layer that a fork makes for its parent: the moment's token is in it.
_OWN_LAYER: Final = re.compile(r"\.[0-9a-f]{16}\.qcow2$")


def in_use(paths: Paths, plans: Iterable[LaunchPlan | None]) -> set[Path]:
    """Every file of a disk that an instance or one of `plans`, of running QEMUs, refers to. Raises Failed
    when that cannot be told: then nothing may be removed."""
    used: set[Path] = set()
    owners: list[InstanceFiles | SnapshotFiles] = [*map(InstanceFiles, paths.instances.iterdir())]
    owners += map(SnapshotFiles, paths.snapshots.iterdir())
    for files in owners:
        if files.chains.exists():  # else it is being made
            used |= {layer.path for chain in chains.read(files).values() for layer in chain}
    for directory in paths.machines.iterdir():
        if (moment := RuntimeFiles(directory).moment).chains.exists():
            used |= {layer.path for chain in chains.read(moment).values() for layer in chain}
    for plan in plans:
        if plan is not None:
            used |= {layer.path for disk in plan.disks for layer in disk.chain}
    return used


def plans_on_disk(paths: Paths) -> Iterator[LaunchPlan | None]:
    """Of every QEMU that runs, also of those that this daemon knows nothing of."""
    return (plan_file.load(RuntimeFiles(directory)) for directory in paths.machines.iterdir())


def unused(paths: Paths, used: set[Path]) -> Iterator[Path]:
    """Frozen layers that nobody refers to; those of a moment that is being taken are among them."""
    return (path for path in paths.layers.iterdir() if path not in used)


def unnamed(files: InstanceFiles, used: set[Path]) -> Iterator[Path]:
    """Disk files in an instance's directory that nobody refers to."""
    return (path for path in files.directory.glob("*.qcow2") if path not in used)


def sweep(ctx: Context) -> None:
    """Remove frozen layers that nobody uses."""
    tokens = ctx.moments.tokens()
    if not any(ctx.paths.layers.iterdir()):
        return
    try:
        used = in_use(ctx.paths, (running.plan for running in ctx.running.values()))
    except Failed as error:
        log.error("%s; keeping all layers", error)
        return
    for path in unused(ctx.paths, used):
        if path.name.partition("-")[0] not in tokens:
            path.unlink(missing_ok=True)


def sweep_instance(ctx: Context, files: InstanceFiles) -> None:
    """Remove what a fork that was cut left beside an instance's disks: a top layer that was never written
    to, and the first name of a file that is a frozen layer now. For a daemon's start only."""
    if not files.chains.exists():
        return
    try:
        used = in_use(ctx.paths, plans_on_disk(ctx.paths))
    except Failed:
        return
    for path in list(unnamed(files, used)):
        if worthless(ctx.paths, path, used):
            path.unlink()
        else:
            log.warning("%s belongs to no disk of its instance", path)


def worthless(paths: Paths, path: Path, used: set[Path]) -> bool:
    """Whether an unnamed disk file is what a fork that was cut leaves: a second name of a frozen layer, or a
    top layer that was never written to."""
    frozen = {_identity(one) for one in paths.layers.iterdir() if one in used}
    return _identity(path) in frozen or (_OWN_LAYER.search(path.name) is not None and is_untouched(path))


def _identity(path: Path) -> tuple[int, int]:
    info = path.stat()
    return info.st_dev, info.st_ino
