"""Whether a host can keep shares of a disk: what its I/O scheduler is able to. Pure. Limits of disks are kept
by QEMU, on every host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from innkeeper.control.placement import Objection
from innkeeper.errors import Unsupported
from innkeeper.spec.host import HostRecord
from innkeeper.spec.instance import InstanceRecord, InstanceSpec
from innkeeper.spec.qos import SHARES, share_number


def objections(spec: InstanceSpec, host: HostRecord) -> list[Objection]:
    if share_number(spec.qos.disk.shares) == SHARES["normal"] or not host.facts.qos.io:
        return []
    return [Objection(f"it cannot keep shares of disks: {host.facts.qos.io}", host.facts.qos.hint)]


def rule(spec: InstanceSpec) -> Callable[[HostRecord], Iterable[Objection]]:
    """For placement.place."""
    return lambda host: objections(spec, host)


def refuse_change(record: InstanceRecord, spec: InstanceSpec, hosts: Sequence[HostRecord]) -> None:
    """Raises Unsupported for what its host cannot keep; of what it was promised before nobody asks."""
    host = next((one for one in hosts if one.name == record.host), None)
    if host is None or spec.qos.disk.shares == record.spec.qos.disk.shares:
        return
    for one in objections(spec, host):
        raise Unsupported(f"{host.name}: {one.reason}", hint=one.hint)
