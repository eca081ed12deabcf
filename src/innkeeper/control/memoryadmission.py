"""Whether a host can keep a VM's memory as its spec says: what its control groups are able to. Pure.

How much may be promised is decided in control/overcommit.py; this is about what there is no word for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from innkeeper.control.placement import Objection
from innkeeper.errors import Unsupported
from innkeeper.spec.host import HostRecord
from innkeeper.spec.instance import InstanceRecord, InstanceSpec
from innkeeper.spec.qos import MemoryQos


def objections(spec: InstanceSpec, host: HostRecord) -> list[Objection]:
    """What is `dedicated` keeps its reservation without a control group: nobody can take any of it."""
    qos, support = spec.qos.memory, host.facts.qos
    if support.memory:
        kept = qos.model_copy(update={"reservation": 0}) if spec.memory.locked else qos
        if not kept.in_groups():
            return []
        return [
            Objection(
                "it cannot keep shares, reservations, limits or a swap policy of memory: " + support.memory,
                support.hint,
            )
        ]
    if support.memory_version == 1 and isinstance(qos.swap, int) and qos.limit is None:
        return [
            Objection(
                "its control groups (cgroup v1) bound swap only together with memory, and qos.memory.limit "
                "says no bound of that",
                "give it a qos.memory.limit, too, or use qos.memory.swap=never",
            )
        ]
    return []


def rule(spec: InstanceSpec) -> Callable[[HostRecord], Iterable[Objection]]:
    """For placement.place."""
    return lambda host: objections(spec, host)


def refuse_change(record: InstanceRecord, spec: InstanceSpec, hosts: Sequence[HostRecord]) -> None:
    """Raises Unsupported for what its host has no word for. What it was promised before is not asked about
    again, nor is taking all of it away."""
    host = next((one for one in hosts if one.name == record.host), None)
    if host is None or spec.qos.memory in (record.spec.qos.memory, MemoryQos()):
        return
    for one in objections(spec, host):
        raise Unsupported(f"{host.name}: {one.reason}", hint=one.hint)
