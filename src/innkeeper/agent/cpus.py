"""Which CPU models and flags this host can give: asked of QEMU once, and kept until it or the host change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any, Final

from pydantic import ValidationError

from innkeeper.agent import sysfs
from innkeeper.agent.context import Context
from innkeeper.engine.kvm import write_json
from innkeeper.engine.qemu import cpumodels
from innkeeper.errors import Unsupported
from innkeeper.spec.accelerator import choose_accelerator
from innkeeper.spec.architecture import HOST
from innkeeper.spec.cpumodel import (
    OPEN,
    CpuCatalogue,
    CpuModel,
    Kind,
    canonical,
    cpu_argument,
    refuse_missing,
    with_levels,
)
from innkeeper.spec.instance import InstanceRecord

# Switches of QEMU that stand among the flags and are none.
_SWITCHES: Final = frozenset(
    {
        "check", "enforce", "migratable", "realized", "kvm", "tcg-cpuid", "l3-cache", "legacy-cache",
        "cpuid-0xb", "full-cpuid-auto-level", "fill-mtrr-mask", "host-phys-bits", "host-cache-info", "pmu",
        "full-width-write", "vmware-cpuid-freq", "start-powered-off", "hotpluggable", "hotplugged",
    }
)  # fmt: skip
_PREFIXES: Final = ("x-", "kvm-", "kvm_", "hv-", "sgx-", "intel-pt-lip")


async def catalogue(ctx: Context, accelerator: Kind | None = None) -> CpuCatalogue:
    """Of the accelerator that `auto` means here, if none is named. Raises Unsupported without QEMU, or for a
    KVM that is not there, EngineError when QEMU does not tell."""
    qemu = ctx.host.qemu()
    if accelerator is None:
        accelerator, _ = choose_accelerator("auto", qemu.kvm, qemu.kvm_detail)
    if accelerator == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Unsupported(f"KVM cannot be asked here: {qemu.kvm_detail}", hint="see inn doctor")
    key = _key(qemu.binary)
    stored = _load(ctx)
    found = _from_cache(stored.get(accelerator), key)
    if found is None:
        told = await cpumodels.ask(ctx.runner, qemu.binary, accelerator)
        found = as_catalogue(told, accelerator, qemu.version, sysfs.cpu_model(sysfs.HOST_ROOT))
        stored[accelerator] = {"key": key, "catalogue": found.model_dump(mode="json")}
        write_json(ctx.paths.cpu_models, stored)
    if accelerator == "kvm" and qemu.kvm != "hardware":
        note = f"no guest should be run under this KVM ({qemu.kvm}): {qemu.kvm_detail}"
        return found.model_copy(update={"usable": False, "note": note})
    return found


def as_catalogue(told: cpumodels.Told, accelerator: Kind, version: str, host_cpu: str) -> CpuCatalogue:
    available = _flags(name for name, value in told.best.items() if value is True)
    best = CpuModel(
        name="max", flags=available, runnable=True, description="everything that can be given here"
    )
    there = [best]
    if accelerator == "kvm":
        there.append(best.model_copy(update={"name": "host", "description": "the host's own"}))
    return CpuCatalogue(
        accelerator=accelerator,
        qemu=version,
        host_cpu=host_cpu,
        flags=available,
        known=_flags(name for name, value in told.best.items() if isinstance(value, bool)),
        models=(*there, *with_levels(map(_model, told.definitions), available)),
    )


def _model(definition: cpumodels.Definition) -> CpuModel:
    missing = tuple(dict.fromkeys(map(canonical, definition.unavailable)))
    return CpuModel(
        name=definition.name,
        flags=_flags(name for name, value in definition.properties.items() if value is True),
        missing=missing,
        runnable=not missing,
        alias_of=definition.alias_of,
        deprecated=definition.deprecated,
    )


def _flags(names: Iterable[str]) -> tuple[str, ...]:
    """The CPU flags among QEMU's properties, by their proper names, sorted."""
    return tuple(sorted({canonical(name) for name in names if not name.startswith(_PREFIXES)} - _SWITCHES))


async def check_cpu(ctx: Context, record: InstanceRecord) -> None:
    """Raises Unsupported, naming the flags, for a model or flags that this host cannot give."""
    cpu = record.spec.cpu
    architecture = record.spec.machine.architecture
    qemu = ctx.host.qemu(architecture)
    accelerator, _ = choose_accelerator(record.spec.machine.accelerator, qemu.kvm, qemu.kvm_detail)
    cpu_argument(cpu, accelerator, architecture=architecture)
    if architecture != HOST:
        return  # QEMU itself refuses what it does not know
    if cpu.model not in OPEN or cpu.features:
        refuse_missing(cpu, accelerator, await catalogue(ctx, accelerator))


def _key(binary: str) -> str:
    """Changes with the QEMU, with the kernel (KVM), and with the host's processor (a disk that moved)."""
    info = os.stat(binary)
    parts = [binary, info.st_mtime_ns, info.st_size, os.uname().release, sysfs.cpu_flags()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _load(ctx: Context) -> dict[str, Any]:
    try:
        stored = json.loads(ctx.paths.cpu_models.read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _from_cache(entry: Any, key: str) -> CpuCatalogue | None:
    try:
        return CpuCatalogue.model_validate(entry["catalogue"]) if entry["key"] == key else None
    except (TypeError, KeyError, ValidationError):
        return None
