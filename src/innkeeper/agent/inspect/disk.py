"""The disks of a running VM: the files they consist of, and what was done with them so far."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from innkeeper.agent import chains
from innkeeper.agent.context import Context, Running
from innkeeper.agent.inspect.throttling import BETWEEN_S, LOOKS, Look, held_back_by
from innkeeper.agent.ops.disklimits import SHARED_GROUP
from innkeeper.drivers import procfs
from innkeeper.engine.base import DiskPlan, Layer
from innkeeper.engine.inspection import BlockDevice, BlockNode, Inspection
from innkeeper.errors import Failed
from innkeeper.paths import InstanceFiles, SnapshotFiles
from innkeeper.spec.inspection import DiskInspection, DiskReport, ImageLayer, IoCounters

Users = Mapping[Path, list[str]]
_NO_STATS: Final[Mapping[str, Any]] = {}


async def inspect_disk(name: str, ctx: Context, running: Running, vm: Inspection) -> DiskInspection:
    """Raises EngineError when QEMU does not answer."""
    begun = time.monotonic()
    nodes = await vm.block_nodes()
    devices = {one.node: one for one in await vm.block_devices()}
    options = blockdev_options(procfs.command_line(running.machine.pid))
    users = await _users(ctx, name)
    plans = running.plan.disks if running.plan else _from_chains(ctx, running.uid)
    held_back = await _held_back(vm, devices)
    disks = [
        _disk(one, nodes, devices, options, users, held_back.get(f"disk-{one.name}", [])) for one in plans
    ]
    return DiskInspection(name=name, disks=disks, took_ms=round((time.monotonic() - begun) * 1000, 2))


async def _held_back(vm: Inspection, devices: Mapping[str, BlockDevice]) -> dict[str, list[str]]:
    """By node, the limits that hold it back now: disks that have any are looked at for a while."""
    limited = {node: one.throttle for node, one in devices.items() if one.throttle is not None}
    if not limited:
        return {}
    begun = time.monotonic()
    looks = {node: [_look(devices[node])] for node in limited}
    for _ in range(LOOKS - 1):
        await asyncio.sleep(BETWEEN_S)
        for one in await vm.block_devices():
            if one.node in looks:
                looks[one.node].append(_look(one))
    took_s = time.monotonic() - begun
    found = {}
    for node, throttle in limited.items():
        group = [other for other, one in limited.items() if one.group == throttle.group]
        pairs = [(looks[other][0], looks[other][-1]) for other in group]
        found[node] = held_back_by(throttle, looks[node], pairs, took_s)
    return found


def _look(device: BlockDevice) -> Look:
    return Look(device.stats, device.in_flight)


def _from_chains(ctx: Context, uid: str) -> tuple[DiskPlan, ...]:
    """Of a QEMU that an older daemon started without noting its plan."""
    found = chains.read(ctx.paths.instance(uid))
    return tuple(DiskPlan(disk, layers) for disk, layers in found.items())


def blockdev_options(argv: list[str]) -> dict[str, dict[str, Any]]:
    """What the process was really started with, by node: QEMU tells no aio back."""
    found = {}
    for option, value in pairwise(argv):
        if option == "-blockdev":
            try:
                members = json.loads(value)
                found[str(members["node-name"])] = members
            except (ValueError, KeyError, TypeError):
                continue
    return found


async def _users(ctx: Context, name: str) -> Users:
    """Who else has a file in one of its disks: instances, and snapshots as VM/SNAPSHOT."""
    owners: list[tuple[str, InstanceFiles | SnapshotFiles]] = []
    for other, record in ctx.records.items():
        if other != name:
            owners.append((other, ctx.paths.instance(record.uid)))
        for snapshot in await ctx.repo.snapshots.of(other):
            owners.append((f"{other}/{snapshot.name}", ctx.paths.snapshot(snapshot.id)))
    users: dict[Path, list[str]] = {}
    for owner, files in owners:
        for path in _files_of(files):
            users.setdefault(path, []).append(owner)
    return {path: sorted(found) for path, found in users.items()}


def _files_of(files: InstanceFiles | SnapshotFiles) -> set[Path]:
    try:
        return {layer.path for chain in chains.read(files).values() for layer in chain}
    except Failed:
        return set()  # it is being made, or removed


def _disk(
    plan: DiskPlan,
    nodes: Mapping[str, BlockNode],
    devices: Mapping[str, BlockDevice],
    options: Mapping[str, Mapping[str, Any]],
    users: Users,
    held_back: list[str],
) -> DiskReport:
    top = f"disk-{plan.name}"
    node, device = nodes.get(top), devices.get(top)
    file = options.get(f"{top}-file", {})
    layers = [
        _layer(layer, top if depth == 0 else f"{top}-{depth}", nodes, users)
        for depth, layer in enumerate(plan.chain)
    ]
    stats = device.stats if device else _NO_STATS
    throttle = device.throttle if device else None
    return DiskReport(
        name=plan.name,
        node=top,
        bus=plan.bus,
        state=device.io_status if device else "",
        virtual_bytes=node.virtual_bytes if node else 0,
        allocated_bytes=sum(one.allocated_bytes for one in layers),
        layers=layers,
        cache=cache_mode(node, device) if node and device else "",
        aio=str(file.get("aio", "threads")) if file else "",
        discard=str(file.get("discard", "ignore")) if file else "",
        detect_zeroes=node.detect_zeroes if node else "",
        throttle=dict(throttle.limits) if throttle else {},
        throttle_shared=throttle is not None and throttle.group == SHARED_GROUP,
        held_back_by=held_back,
        in_flight=device.in_flight if device else None,
        reads=_counters(stats, "rd"),
        writes=_counters(stats, "wr"),
        flushes=_counters(stats, "flush"),
        discards=_counters(stats, "unmap"),
    )


def cache_mode(node: BlockNode, device: BlockDevice) -> str:
    """The name of the combination (qemu-options.hx, -drive cache=)."""
    if node.no_flush:
        return "unsafe"
    if node.direct:
        return "none" if device.writeback else "directsync"
    return "writeback" if device.writeback else "writethrough"


def _layer(layer: Layer, name: str, nodes: Mapping[str, BlockNode], users: Users) -> ImageLayer:
    node = nodes.get(name)
    return ImageLayer(
        path=str(layer.path),
        format=layer.format,
        node=name if node else "",
        virtual_bytes=node.virtual_bytes if node else 0,
        allocated_bytes=node.allocated_bytes if node else 0,
        writable=bool(node and not node.readonly),
        used_by=users.get(layer.path, []),
        bitmaps=[dict(one) for one in node.bitmaps] if node else [],
    )


def _counters(stats: Mapping[str, Any], kind: str) -> IoCounters:
    """Names of BlockDeviceStats (qapi/block-core.json)."""
    requests, total_ns = int(stats.get(f"{kind}_operations", 0)), int(stats.get(f"{kind}_total_time_ns", 0))
    return IoCounters(
        requests=requests,
        bytes=int(stats.get(f"{kind}_bytes", 0)),
        merged=int(stats.get(f"{kind}_merged", 0)),
        failed=int(stats.get(f"failed_{kind}_operations", 0)),
        invalid=int(stats.get(f"invalid_{kind}_operations", 0)),
        average_us=round(total_ns / requests / 1000, 1) if requests else None,
    )
