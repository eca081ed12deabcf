"""A snapshot: a moment of an instance made durable, and what a host must have to run on from it."""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Any, Final, Literal

from pydantic import Field

from innkeeper.errors import Unsupported
from innkeeper.spec.base import Model, Name
from innkeeper.spec.instance import InstanceSpec

# The name under which `save` keeps the state of a whole VM until `restore` takes it up.
SAVED: Final = "saved"

SnapshotKind = Literal["memory", "disks"]


class SnapshotState(enum.StrEnum):
    """taking: asked for, not there yet; ready; removing: as good as gone."""

    TAKING = "taking"
    READY = "ready"
    REMOVING = "removing"


class SnapshotLabels(Model):
    """What made the saved state; only something like it can take it up again."""

    qemu: str = Field(default="", description="Version of QEMU.")
    machine: str = Field(default="", description="Versioned machine type.")
    accelerator: str = ""
    cpu_model: str = ""
    host_cpu: str = Field(default="", description="The host's CPU, for people.")
    cpu_flags: tuple[str, ...] = Field(
        default=(), description="Features of the host's CPU, where the guest was shown them (KVM)."
    )


class FileMark(Model):
    """To tell a damaged or truncated file; the RAM file has no checksum, only sizes."""

    size_bytes: int
    sha256: str = ""


class SnapshotRecord(Model):
    """What the store keeps of a snapshot. Its files lie under snapshots/<id>/ and never change; its disks
    are layers, shared with whoever else was made from them."""

    name: Name
    id: str = Field(pattern=r"^[0-9a-f]{16}$", description="Also of its moment, and of its layers.")
    instance: Name
    uid: str = Field(description="Of the instance.")
    host: str
    parent: str = Field(default="", description="The snapshot its disks derive from; empty: none.")
    created_at: float
    kind: SnapshotKind
    state: SnapshotState = SnapshotState.TAKING
    saves: bool = Field(default=False, description="The instance stands still for it, and is off afterwards.")
    compress: bool = Field(default=False, description="RAM is kept compressed (zstd).")
    consistent: bool = Field(
        default=True, description="False: the disks are as after a power cut, nobody froze the file systems."
    )
    size_bytes: int = Field(default=0, description="Of its own files on the host; layers are shared.")
    ram_bytes: int = Field(default=0, description="RAM of the guest.")
    total_bytes: int = Field(default=0, description="What has to be written while it is being taken.")
    written_bytes: int = Field(default=0, description="How much of that is written.")
    pause_ms: float = Field(default=0.0, description="How long the instance stood still for it.")
    took_ms: float = Field(default=0.0, description="Until it was on disk.")
    labels: SnapshotLabels = SnapshotLabels()
    files: dict[str, FileMark] = Field(default_factory=dict)
    image_id: str = ""
    spec: InstanceSpec = Field(description="Of the instance as it was.")
    note: str = Field(default="", description="What the user should know, one line.")
    failure: dict[str, Any] | None = Field(default=None, description="Why it could not be taken.")


def check_restorable(
    snapshot: SnapshotRecord,
    *,
    qemu_version: str,
    machine_types: Collection[str],
    kvm: bool,
    cpu_flags: Collection[str] = (),
) -> None:
    """Raises Unsupported with what this host lacks to run on from the memory of a snapshot.

    Disks alone go anywhere. An empty collection is not known, and not held against it.
    """
    if snapshot.kind != "memory":
        return
    labels, name = snapshot.labels, f"{snapshot.instance}/{snapshot.name}"
    if machine_types and labels.machine not in machine_types:
        raise Unsupported(
            f"Snapshot {name} is of machine type {labels.machine}, which this QEMU ({qemu_version}) lacks",
            hint="install the QEMU it was taken with, or a newer one that still has the type",
        )
    if _version(labels.qemu) > _version(qemu_version):
        raise Unsupported(
            f"Snapshot {name} was taken with QEMU {labels.qemu}; this host has the older {qemu_version}",
            hint="QEMU reads states of older versions only: install the newer one",
        )
    if labels.accelerator == "kvm" and not kvm:
        raise Unsupported(
            f"Snapshot {name} was taken under KVM, which does not work here; the CPU state does not fit TCG",
            hint="see inn doctor",
        )
    missing = sorted(set(labels.cpu_flags) - set(cpu_flags)) if cpu_flags else []
    if labels.accelerator == "kvm" and missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise Unsupported(
            f"Snapshot {name} was taken on a CPU ({labels.host_cpu}) with {', '.join(missing[:5])}{more}, "
            "which this one lacks",
            hint="restore it on such a CPU; for VMs that move, choose a named CPU model",
        )


def _version(text: str) -> tuple[int, int]:
    """Major and minor: within those, states fit both ways."""
    parts = [int(part) for part in text.split(".")[:2] if part.isdigit()]
    return (parts[0], parts[1]) if len(parts) == 2 else (0, 0)
