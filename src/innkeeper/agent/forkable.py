"""Whether a VM of this host can be forked: the rules of the fork (ops/fork.py) and of `inn explain`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

from innkeeper.agent import chains, memorycheck
from innkeeper.agent.context import Context, Running
from innkeeper.agent.launchplan import SEED_DISK
from innkeeper.agent.lookup import plan_of
from innkeeper.drivers.storage import files as storage
from innkeeper.engine.base import DiskPlan, LaunchPlan, RunState
from innkeeper.errors import EngineError, InnkeeperError, Unsupported, WrongState
from innkeeper.paths import InstanceFiles, Paths
from innkeeper.spec.finding import Finding, asked, block, ok, warn
from innkeeper.spec.instance import InstanceRecord, State
from innkeeper.spec.memory import HugePageSize, Memory
from innkeeper.units import MiB, format_size, human_size

# Device state is some 0.5 MB, more with much video memory.
STATE_RESERVE_BYTES: Final = 16 * MiB
# A hand-over takes some 50 ms.
MOVE_LOOK_S: Final = 0.01


def of_running(ctx: Context, record: InstanceRecord, running: Running) -> Iterator[Finding]:
    """What can be said before its QEMU is asked anything."""
    if ctx.statuses[record.uid].template:
        yield block(
            WrongState(
                f"{record.name} is a template: it stands still at one moment, and has no other",
                hint=f"do it with a copy: inn fork {record.name}; or let it run on: inn resume {record.name}",
            )
        )
        return
    if running.plan is None:
        yield block(
            Unsupported(
                f"{record.name} was started by an older daemon, which did not note how",
                hint=f"restart it once: inn restart {record.name}",
            )
        )
        return
    yield from of_disks(running.plan, ctx.paths.instance(record.uid), ctx.paths.layers)
    if running.plan.reporting:
        yield block(
            Unsupported(
                f"The guest of {record.name} gives back what it frees, unasked: in RAM that is shared the"
                " kernel would refuse each page, and QEMU log it",
                hint=f"inn set {record.name} qos.memory.reporting=false, restart it, then try again",
            )
        )
    yield from memorycheck.of_fork(memory_of(record, running.plan), ctx.host, record.name)
    moments = ctx.paths.moments
    yield from asked(
        lambda: storage.require_free(moments, STATE_RESERVE_BYTES),
        "there is room for the state of its devices",
    )


def memory_of(record: InstanceRecord, plan: LaunchPlan) -> Memory:
    """As it runs; the spec may say otherwise for its next start."""
    page = plan.memory.page_bytes
    return Memory(
        size=plan.ram_bytes,
        hugepages=cast(HugePageSize, format_size(page) if page else ""),
        locked=plan.memory.locked,
        prealloc=plan.memory.prealloc,
    )


def of_disks(plan: LaunchPlan, files: InstanceFiles, layers: Path) -> Iterator[Finding]:
    """Disks that cannot be shared."""
    for disk in plan.disks:
        if not disk.readonly:
            yield _of_disk(plan, disk, files, layers)


def _of_disk(plan: LaunchPlan, disk: DiskPlan, files: InstanceFiles, layers: Path) -> Finding:
    top = disk.chain[0].path
    if files.directory not in top.parents and layers not in top.parents:
        return block(
            Unsupported(
                f"Disk {disk.name} of {plan.name} is used in place ({top}): two VMs cannot write to it",
                hint="give the instance a disk of its own (a copy), or make the disk read-only",
            )
        )
    if disk.chain[0].format != "qcow2":
        return block(Unsupported(f"Disk {disk.name} of {plan.name} is {disk.chain[0].format}, not qcow2"))
    return ok(f"disk {disk.name} is shared copy-on-write")


def of_state(record: InstanceRecord, state: RunState) -> Iterator[Finding]:
    if state not in (RunState.RUNNING, RunState.PAUSED):
        yield block(EngineError(f"{record.name} is in state {state.value} and cannot be forked"))


def of_copies(ctx: Context, record: InstanceRecord) -> Iterator[Finding]:
    """Whether whole copies of its disks fit."""
    needed = sum(storage.chain_bytes(files) for files in to_copy(ctx.paths, record.uid).values())
    there_is = f"there is room for the copies of its disks, {human_size(needed)} at most"
    yield from asked(lambda: storage.require_free(ctx.paths.instances, needed), there_is)


def to_copy(paths: Paths, uid: str) -> dict[str, list[tuple[Path, str]]]:
    """The files of the disks that a clone gets copies of, top first: all but files of the user's that are
    used in place (then only read), and the seed, which is made anew."""
    ours = (paths.instances, paths.layers)
    return {
        name: [(layer.path, layer.format) for layer in chain]
        for name, chain in chains.read(paths.instance(uid)).items()
        if name != SEED_DISK and any(place in chain[0].path.parents for place in ours)
    }


async def explain(ctx: Context, record: InstanceRecord, *, copied: bool = False) -> list[Finding]:
    """All there is to say of a fork, or with `copied` of a clone; nothing is changed."""
    running = ctx.running.get(record.uid)
    if ctx.statuses[record.uid].template and not copied:
        return []  # nothing happens to it
    copies = list(of_copies(ctx, record)) if copied else []
    if running is None:
        try:
            plan = plan_of(ctx, record)
        except InnkeeperError as error:
            return [block(error)]
        return [*of_disks(plan, ctx.paths.instance(record.uid), ctx.paths.layers), *copies]
    found = [*of_running(ctx, record, running), *copies]
    try:
        found += of_state(record, await _state_of(running))
    except InnkeeperError as error:
        found.append(block(error))
    return [*found, *_side_effects(ctx, record, running, boots=copied)]


async def _state_of(running: Running) -> RunState:
    """Of whichever process is the VM: one that is asked while it is replaced does not answer."""
    while True:
        asked_one = running.machine
        try:
            return await asked_one.run_state()
        except EngineError:
            if running.machine is asked_one and running.at_rest.is_set():
                raise
        await asyncio.sleep(MOVE_LOOK_S)


def _side_effects(
    ctx: Context, record: InstanceRecord, running: Running, *, boots: bool
) -> Iterator[Finding]:
    """What a fork does that one may not expect; none of it stops one."""
    if running.machine.ram_private:
        size = record.spec.memory.size
        yield warn(
            f"{record.name} shares RAM with a fork: {human_size(size)} are copied first, while it runs",
            "the fork takes that much longer, and that much memory of the host for good",
        )
        if size > ctx.host.memory_available_bytes():
            yield warn(
                f"the host has {human_size(ctx.host.memory_available_bytes())} available, less than that RAM",
                "stop other instances",
            )
    paused = ctx.statuses[record.uid].state is State.PAUSED
    if boots:
        pass  # the copy learns who it is when it has booted
    elif not running.machine.agent_open:
        yield warn(
            "no guest agent answers: the copies keep its host name, MAC addresses, machine-id and clock",
            "install qemu-guest-agent in the guest, or wait until it has booted",
        )
    elif not paused:
        yield ok("the guest agent answers: each copy gets an identity of its own")
    if any(nic.backend == "slirp" for nic in running.plan.nics) if running.plan else False:
        yield warn(
            "its network is slirp, inside QEMU: its own connections are cut by the fork",
            "install passt, then restart it",
        )
