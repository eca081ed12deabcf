"""Whether a host can keep what a VM's CPU time is promised. Pure.

A reservation is had whatever the others do, so the reservations of all VMs that run or are about to, and the
part kept for the host itself (spec/sharing.py), never exceed the host's CPUs. Shares and limits cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from innkeeper.control.lifecycle import is_active
from innkeeper.control.placement import Objection
from innkeeper.errors import NoCapacity, Refused, Unsupported
from innkeeper.spec.finding import Finding, block
from innkeeper.spec.host import HostRecord
from innkeeper.spec.instance import InstanceRecord, InstanceSpec
from innkeeper.spec.qos import CpuQos
from innkeeper.spec.sharing import kept_millicores
from innkeeper.store.view import InstanceView
from innkeeper.units import format_cores

_NAMED: Final = 3


def objections(
    spec: InstanceSpec,
    host: HostRecord,
    instances: Iterable[InstanceView],
    *,
    but: str = "",
    to_run: bool = True,
    count: int = 1,
    before: int = 0,
) -> list[Objection]:
    """Of `host` against `count` VMs of this spec beside the active ones (other than `but`); without `to_run`
    only against what it could never keep. A reservation that is no more than it was `before` is kept as well
    as that was: of a host that has become smaller not whole."""
    qos = spec.qos.cpu
    if qos == CpuQos():
        return []
    if host.facts.qos.cpu:
        why = f"it cannot keep shares, reservations or limits of CPU time: {host.facts.qos.cpu}"
        return [Objection(why, host.facts.qos.hint)]
    if qos.reservation <= before:
        return []
    cpus = len(host.facts.cpu_ids) or host.facts.cpus
    kept = kept_millicores(cpus)
    others = _reserved(instances, host.name, but) if to_run else {}
    left = cpus * 1000 - kept - sum(others.values())
    needed = qos.reservation * count
    if needed <= left:
        return []
    each = f" ({format_cores(qos.reservation)} each)" if count > 1 else ""
    reason = (
        f"{format_cores(needed)} cores are to be reserved{each}, and {format_cores(max(left, 0))} of its "
        f"{cpus} can be: {format_cores(kept)} is kept for the host{_by_whom(others)}"
    )
    return [
        Objection(reason, "reserve less (qos.cpu.reservation), or stop others that reserve", capacity=True)
    ]


def rule(
    spec: InstanceSpec, instances: Sequence[InstanceView], *, but: str = "", to_run: bool = True
) -> Callable[[HostRecord], Iterable[Objection]]:
    """For placement.place."""
    return lambda host: objections(spec, host, instances, but=but, to_run=to_run)


def of_copies(
    parent: InstanceRecord, count: int, hosts: Sequence[HostRecord], instances: Iterable[InstanceView]
) -> Iterator[Finding]:
    """Whether so many copies that run can have what each of them reserves."""
    host = next((one for one in hosts if one.name == parent.host), None)
    if host is not None and count:
        for one in objections(parent.spec, host, instances, count=count):
            yield block(_error(host.name, one))


def refuse_change(
    view: InstanceView, spec: InstanceSpec, hosts: Sequence[HostRecord], instances: Iterable[InstanceView]
) -> None:
    """Raises what speaks against another promise for a VM that there is already. What it was promised before
    is not asked about again."""
    record = view.record
    host = next((one for one in hosts if one.name == record.host), None)
    if host is None or spec.qos.cpu == record.spec.qos.cpu:
        return
    to_run = is_active(record, view.status)
    before = record.spec.qos.cpu.reservation
    for one in objections(spec, host, instances, but=record.name, to_run=to_run, before=before):
        raise _error(host.name, one)


def _error(host: str, objection: Objection) -> Refused:
    kind = NoCapacity if objection.capacity else Unsupported
    return kind(f"{host}: {objection.reason}", hint=objection.hint)


def _reserved(instances: Iterable[InstanceView], host: str, but: str) -> dict[str, int]:
    return {
        view.name: view.record.spec.qos.cpu.reservation
        for view in instances
        if view.record.host == host
        and view.name != but
        and view.record.spec.qos.cpu.reservation
        and is_active(view.record, view.status)
    }


def _by_whom(others: dict[str, int]) -> str:
    if not others:
        return ""
    most = sorted(others.items(), key=lambda one: (-one[1], one[0]))
    named = ", ".join(f"{name} ({format_cores(amount)})" for name, amount in most[:_NAMED])
    more = f" and {len(most) - _NAMED} more" if len(most) > _NAMED else ""
    return f", {format_cores(sum(others.values()))} are reserved by {named}{more}"
