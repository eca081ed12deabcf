"""What nobody uses any more: files, directories and processes that a fault left behind.

Found by looking at everything there is and everything that refers to it, twice, half a second apart: what a
fork, a start or a removal has in hand at one look has its owner by the other. Only what this daemon made is
looked at: below its state directory, and processes that log there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from innkeeper.agent import layers
from innkeeper.agent.context import Context, Running
from innkeeper.errors import Failed
from innkeeper.paths import NEXT_SUFFIX, InstanceFiles
from innkeeper.spec.instance import InstanceRecord, InstanceStatus, Power, State
from innkeeper.store import keys

# A fork, a start or a removal takes longer as a whole, but never keeps anything without an owner that long.
BETWEEN_LOOKS_S: Final = 0.5
_PROGRAMS: Final = ("qemu", "passt")

Kind = Literal[
    "layer",
    "disk file",
    "process",
    "moment",
    "runtime directory",
    "snapshot directory",
    "instance directory",
    "control group",
]


@dataclass(frozen=True, order=True)
class Leak:
    """`path` is of the file or directory, or of the log that process `pid` writes. One that is not `safe` may
    be something that was restored or moved by hand: it is told, and left."""

    kind: Kind
    path: Path
    pid: int = 0
    safe: bool = True

    def __str__(self) -> str:
        return f"{self.kind} {self.pid or self.path}"


class Leaks:
    """What the doctor asks (agent.doctor.base.LeakFinder)."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def find(self) -> list[Leak]:
        """Raises Failed when it cannot be told what is in use; then nothing may be removed either."""
        first = await _look(self._ctx)
        if not first:
            return []
        await self._ctx.clock.sleep(BETWEEN_LOOKS_S)
        return sorted(first & await _look(self._ctx))

    async def remove(self) -> None:
        """All that is safe to remove. Processes first: they may have the files open."""
        found = [leak for leak in await self.find() if leak.safe]
        for leak in found:
            if leak.pid and leak in _processes(self._ctx, await _known(self._ctx)):
                await self._ctx.engine.destroy_stray(leak.pid)
        for leak in found:
            if leak.pid:
                continue
            if leak.kind == "control group":
                self._ctx.cgroups.leave(leak.path.name)
            elif leak.path.is_dir():
                shutil.rmtree(leak.path, ignore_errors=True)
            else:
                leak.path.unlink(missing_ok=True)


async def _look(ctx: Context) -> set[Leak]:
    known = await _known(ctx)
    snapshots = await _snapshots(ctx)
    # From here on nothing is waited for: all of it is of one instant.
    return {
        *_layers(ctx),
        *_processes(ctx, known),
        *_moments(ctx),
        *_runtime_directories(ctx, known),
        *_instance_directories(ctx, known),
        *_control_groups(ctx, known),
        *(
            Leak("snapshot directory", directory)
            for directory in ctx.paths.snapshots.iterdir()
            if directory.name not in snapshots
        ),
    }


async def _known(ctx: Context) -> set[str]:
    """Every uid that anything in the store has: it is written there before anything is made, and goes last.
    A record that cannot be read may be anybody's. Raises Failed for one."""
    found = {record.uid for record in ctx.records.values()}
    for kv in (await ctx.repo.store.list("")).items:
        value = _value(kv.key, kv.value)
        if isinstance(uid := value.get("uid"), str):
            found.add(uid)
    return found


async def _snapshots(ctx: Context) -> set[str]:
    listing = await ctx.repo.store.list(keys.SNAPSHOTS)
    return {str(_value(kv.key, kv.value).get("id")) for kv in listing.items}


def _value(key: str, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Failed(f"The record {key} is damaged: it cannot be told what belongs to it") from error
    return value if isinstance(value, dict) else {}


def _at_rest(ctx: Context, record: InstanceRecord) -> bool:
    """Off, as it is wanted, and nobody is about to change that."""
    status = ctx.statuses.get(record.uid, InstanceStatus())
    settled = status.generation == record.wanted.generation and record.wanted.power is Power.OFF
    asked = ctx.moments.waiting(record.uid) is not None or ctx.moments.has(record.uid)
    return settled and status.state is State.STOPPED and record.uid not in ctx.running and not asked


def _layers(ctx: Context) -> Iterator[Leak]:
    """Frozen layers without a user, and disk files beside an instance's own."""
    used = layers.in_use(ctx.paths, (running.plan for running in ctx.running.values()))
    used |= layers.in_use(ctx.paths, layers.plans_on_disk(ctx.paths))
    tokens = ctx.moments.tokens()
    for path in layers.unused(ctx.paths, used):
        if path.name.partition("-")[0] not in tokens:
            yield Leak("layer", path)
    for record in ctx.records.values():
        files = ctx.paths.instance(record.uid)
        if files.chains.exists() and not (record.wanted.removed or ctx.moments.waiting(record.uid)):
            yield from _disk_files(ctx, files, used, tokens)


def _disk_files(ctx: Context, files: InstanceFiles, used: set[Path], tokens: set[str]) -> Iterator[Leak]:
    for path in layers.unnamed(files, used):
        if not any(token in path.name for token in tokens):
            yield Leak("disk file", path, safe=layers.worthless(ctx.paths, path, used))


def _processes(ctx: Context, known: set[str]) -> Iterator[Leak]:
    idle = {record.uid for record in ctx.records.values() if _at_rest(ctx, record)}
    for pid, log in _ours(ctx.paths.instances):
        uid = log.parent.name
        running = ctx.running.get(uid)
        second = running is not None and running.at_rest.is_set() and _is_second(running, pid)
        if uid not in known or uid in idle or second:
            yield Leak("process", log, pid)


def _is_second(running: Running, pid: int) -> bool:
    """A QEMU of a hand-over, when it is over."""
    return pid != running.machine.pid and _program(pid).startswith("qemu")


def _ours(instances: Path, proc: Path = Path("/proc")) -> Iterator[tuple[int, Path]]:
    """(pid, log) of every QEMU and passt whose output goes to an instance of this state directory."""
    for entry in proc.iterdir():
        if entry.name.isdigit() and _program(int(entry.name), proc).startswith(_PROGRAMS):
            with contextlib.suppress(OSError):  # ended meanwhile, or not ours to look at
                log = Path(os.readlink(entry / "fd/2").removesuffix(" (deleted)"))
                if log.parent.parent == instances:
                    yield int(entry.name), log


def _program(pid: int, proc: Path = Path("/proc")) -> str:
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return os.path.basename(words[0]).decode(errors="replace")


def _moments(ctx: Context) -> Iterator[Leak]:
    tokens = ctx.moments.tokens()
    for directory in ctx.paths.moments.iterdir():
        if directory.name not in tokens:
            yield Leak("moment", directory)


def _runtime_directories(ctx: Context, known: set[str]) -> Iterator[Leak]:
    """Without a VM: of nobody, of one that is off, or of a hand-over that is over."""
    idle = {ctx.paths.runtime(one.uid).directory for one in ctx.records.values() if _at_rest(ctx, one)}
    settled = {
        ctx.paths.next_runtime(uid).directory
        for uid, running in ctx.running.items()
        if running.at_rest.is_set() and ctx.moments.waiting(uid) is None
    }
    owned = {ctx.paths.runtime(uid).directory for uid in known}
    for directory in ctx.paths.machines.iterdir():
        first = directory.with_name(directory.name.removesuffix(NEXT_SUFFIX))
        if first not in owned or first in idle or directory in settled:
            yield Leak("runtime directory", directory)


def _control_groups(ctx: Context, known: set[str]) -> Iterator[Leak]:
    idle = {record.uid for record in ctx.records.values() if _at_rest(ctx, record)}
    for uid, path in ctx.cgroups.leftover().items():
        if (uid not in known or uid in idle) and not ctx.cgroups.leaving(uid):
            yield Leak("control group", path)


def _instance_directories(ctx: Context, known: set[str]) -> Iterator[Leak]:
    """No crash of ours leaves any, so somebody restored or moved it: not ours to destroy."""
    for directory in ctx.paths.instances.iterdir():
        if directory.name not in known:
            yield Leak("instance directory", directory, safe=False)
