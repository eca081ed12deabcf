"""Find what an instance is made of: its image, its files, its launch plan."""

from __future__ import annotations

from dataclasses import replace

from innkeeper.agent import chains
from innkeeper.agent.context import Context
from innkeeper.agent.launchplan import build_launch_plan
from innkeeper.drivers import firmware
from innkeeper.drivers.network.user import available_backend
from innkeeper.engine.base import FirmwarePlan, LaunchPlan
from innkeeper.engine.memory import MemoryPlan
from innkeeper.images.imagedir import ImageManifest, load_manifest
from innkeeper.spec.instance import InstanceRecord


def image_of(ctx: Context, record: InstanceRecord) -> ImageManifest | None:
    if not record.image_id:
        return None
    return load_manifest(ctx.paths.images / record.image_id)


def expects_agent(record: InstanceRecord, image: ImageManifest | None) -> bool:
    """Whether being ready means that the guest agent answers."""
    if record.spec.wait_for_agent is not None:
        return record.spec.wait_for_agent
    return bool(image and image.agent)


def merging(ctx: Context, record: InstanceRecord, memory: MemoryPlan) -> MemoryPlan:
    """With what is wanted now of the merging of equal pages: by its spec, and by the host's setting."""
    wanted = record.spec.memory.merge == "auto" and ctx.host.settings.ksm != "never"
    return replace(memory, merge=memory.merge and wanted)


def plan_of(ctx: Context, record: InstanceRecord) -> LaunchPlan:
    """Find every file the instance needs and build its launch plan."""
    files = ctx.paths.instance(record.uid)
    uefi = None
    if record.spec.machine.firmware == "uefi":
        uefi = FirmwarePlan(firmware.find_uefi().code, files.uefi_vars)
    plan = build_launch_plan(
        record,
        image=image_of(ctx, record),
        image_directory=ctx.paths.images / record.image_id,
        chains=chains.read(files),
        qemu=ctx.host.qemu(record.spec.machine.architecture),
        files=files,
        firmware=uefi,
        nic_backend=available_backend(),
        host_nodes=ctx.host.numa(),
    )
    return replace(plan, memory=merging(ctx, record, plan.memory))
