"""Which limits each disk of an instance is to be held to."""

from __future__ import annotations

from innkeeper.spec.diskqos import RATES, DiskLimits, LimitsInForce
from innkeeper.spec.instance import InstanceSpec, InstanceStatus


def limits_of(spec: InstanceSpec, name: str) -> LimitsInForce | None:
    """Of one disk, also of those that the spec does not list (an image's root, the cloud-init seed): its own
    where it has any, else those it shares with the others; None where there are none."""
    own = next((disk.qos for disk in spec.disks if disk.name == name), None)
    if own is not None:
        return _in_force(own, shared=False)
    return _in_force(spec.qos.disk, shared=True) if spec.qos.disk.limits else None


def _in_force(limits: DiskLimits, *, shared: bool) -> LimitsInForce:
    """With the lengths of bursts that are not given: QEMU tells them as well."""
    lengths = {f"{name}_burst_length": 1 for name in RATES if f"{name}_burst" in limits.limits}
    return LimitsInForce(**{**lengths, **limits.limits}, shared=shared)


def drifted(spec: InstanceSpec, status: InstanceStatus) -> bool:
    """Whether a running VM's disks are held to something else."""
    return any(limits_of(spec, name) != now for name, now in status.disk_limits.items())
