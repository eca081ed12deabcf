"""Everybody whose use may explain why a VM was slow, from the histories that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from innkeeper.agent.attribution.parties import Binding, DiskLimit, HostParty, Party, Scene
from innkeeper.agent.attribution.timeline import Timeline
from innkeeper.agent.context import Context
from innkeeper.agent.sampling import history as histories
from innkeeper.agent.sampling.history import COARSE_STEP_S, FINE_ROWS, FINE_STEP_S, History
from innkeeper.agent.sampling.host import HostTracker
from innkeeper.agent.sampling.limits import Limits
from innkeeper.agent.sampling.ring import rows_of
from innkeeper.agent.sampling.tracker import Tracker
from innkeeper.spec.cpu import cpu_set
from innkeeper.spec.instance import InstanceRecord, InstanceStatus

CLOSELY_S: Final = float(FINE_STEP_S * FINE_ROWS)


async def scene(
    ctx: Context,
    trackers: Mapping[str, Tracker],
    host: HostTracker,
    node_of_cpu: Mapping[int, int],
    record: InstanceRecord,
    since_s: float,
) -> Scene:
    """Of a VM that was removed meanwhile nothing is known any more: what it used counts as the host's."""
    end = ctx.clock.time()
    begin = end - since_s
    step_s = FINE_STEP_S if since_s <= CLOSELY_S else COARSE_STEP_S

    async def kept(one: InstanceRecord) -> History | None:
        tracker = trackers.get(one.uid)
        if tracker is not None:
            return tracker.history
        ended = ctx.statuses.get(one.uid, InstanceStatus()).ended
        if ended is None or ended.at < begin:
            return None
        return await asyncio.to_thread(histories.load, ctx.paths.instance(one.uid).history)

    def timeline(history: History | None) -> Timeline:
        rows = rows_of(history.table(begin, step_s, peak=())[1]) if history else ()
        return Timeline(rows, step_s)

    parties = {}
    for one in list(ctx.records.values()):
        history = await kept(one)
        if history is not None or one.uid == record.uid:
            status = ctx.statuses.get(one.uid, InstanceStatus())
            parties[one.uid] = _party(one, status, timeline(history), trackers.get(one.uid), node_of_cpu)
            await asyncio.sleep(0)  # a day of one VM takes some milliseconds: others get a turn
    cpus = len(host.sample.cpus) if host.sample else 1
    total = host.metrics().memory_bytes
    return Scene(
        victim=parties.pop(record.uid),
        others=tuple(parties.values()),
        host=HostParty(timeline(host.history), cpus, total, ctx.cgroups.why_not("cpu")),
        begin=begin,
        end=end,
        step_s=step_s,
    )


def _party(
    record: InstanceRecord,
    status: InstanceStatus,
    timeline: Timeline,
    tracker: Tracker | None,
    node_of_cpu: Mapping[int, int],
) -> Party:
    spec = record.spec
    binding, host_cpus = _bound(record, status, node_of_cpu)
    return Party(
        name=record.name,
        uid=record.uid,
        timeline=timeline,
        vcpus=status.cpus or spec.cpu.count,
        memory_bytes=spec.memory.size,
        qos=spec.qos,
        state=status.state.value,
        accelerator=status.accelerator,
        binding=binding,
        host_cpus=host_cpus,
        disks=bool(tracker and tracker.devices),
        disk_limits=_disk_limits(record, tracker),
    )


def _bound(
    record: InstanceRecord, status: InstanceStatus, node_of_cpu: Mapping[int, int]
) -> tuple[Binding, frozenset[int]]:
    """To which CPUs of the host its vCPUs are bound, if all of them are."""
    cpu = record.spec.cpu
    if cpu.pin and len(cpu.pin) >= (status.cpus or cpu.count):
        return "pinned", frozenset().union(*map(cpu_set, cpu.pin.values()))
    nodes = {share.node for share in record.nodes}
    on_nodes = frozenset(number for number, node in node_of_cpu.items() if node in nodes)
    if nodes and on_nodes and len(on_nodes) < len(node_of_cpu):
        return "node", on_nodes
    return ("pinned" if cpu.pin else ""), frozenset()


def _disk_limits(record: InstanceRecord, tracker: Tracker | None) -> tuple[DiskLimit, ...]:
    if tracker is None:
        return ()
    places = {disk.name: f"disks.{place}.qos" for place, disk in enumerate(record.spec.disks)}

    def setting(limits: Limits) -> str:
        return "qos.disk" if limits.shared else places.get(next(iter(limits.disks)), "qos.disk")

    return tuple(
        DiskLimit(f"{setting(limits)}.{what}", what, most, limits.column(what), limits.bursts.get(what))
        for limits in tracker.limits
        for what, most in limits.most.items()
    )
