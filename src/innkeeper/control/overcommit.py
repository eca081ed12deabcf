"""How much of a host may be given out, and what it could owe in the worst case. Pure.

Three figures of each VM, in bytes of the host's ordinary memory (decision 0017):

    promised   its reservation, and RAM that is taken whole: the sum never exceeds what the host has for VMs
    given      what admission reckons with: its most; of a fork what forks are reckoned to write
    most       what it can take at worst; of a fork every page of its RAM, beside the frozen one it shares

`given` is held to the host's ratio (`inn host set overcommit.memory=1.5`), `most` is only shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from innkeeper.control.forking import COPY_OVERHEAD_BYTES
from innkeeper.control.lifecycle import is_active
from innkeeper.control.placement import Objection, memory_needed, ordinary_ram
from innkeeper.errors import NoCapacity, SpecError
from innkeeper.spec.finding import Finding, block, ok
from innkeeper.spec.host import HostRecord
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, private_bytes
from innkeeper.spec.metrics import MemoryMetrics, Metrics
from innkeeper.spec.overcommit import Account, CpuAccount, MemoryAccount, kept_bytes
from innkeeper.store.view import InstanceView
from innkeeper.units import MiB, format_size, human_size

# What Linux and a small program need; images say more (min_memory), but not what can be swapped out.
LEAST_GUEST_BYTES: Final = 64 * MiB


@dataclass(frozen=True, slots=True)
class Owed:
    """Of one VM; see above."""

    promised: int = 0
    given: int = 0
    most: int = 0
    vcpus: int = 0

    def __add__(self, other: Owed) -> Owed:
        return Owed(
            self.promised + other.promised,
            self.given + other.given,
            self.most + other.most,
            self.vcpus + other.vcpus,
        )

    def times(self, count: int) -> Owed:
        return Owed(self.promised * count, self.given * count, self.most * count, self.vcpus * count)


NOTHING_OWED: Final = Owed()


def capacity_bytes(host: HostRecord) -> int:
    """What the host has for VMs, of ordinary memory."""
    facts = host.facts
    huge = sum(pool.page_bytes * pool.total for node in facts.numa for pool in node.hugepages)
    return max(0, facts.memory_bytes - huge - kept_bytes(facts.memory_bytes))


def of_spec(spec: InstanceSpec) -> Owed:
    """Of a VM that has its RAM for itself."""
    need = memory_needed(spec)
    limit = spec.qos.memory.limit
    most = need if limit is None else min(need, limit)
    whole = need if spec.memory.locked or (spec.memory.prealloc and not spec.memory.hugepages) else 0
    return Owed(max(min(spec.qos.memory.reservation, need), whole), most, most, spec.cpu.count)


def of_fork(spec: InstanceSpec) -> Owed:
    """Of a copy whose RAM is a copy-on-write view of another's."""
    need = ordinary_ram(spec) + COPY_OVERHEAD_BYTES
    limit = spec.qos.memory.limit
    most = need if limit is None else min(need, limit)
    ram = 0 if spec.memory.hugepages else private_bytes(spec.memory.size)
    promised = min(spec.qos.memory.reservation, need)
    return Owed(promised, min(most, max(promised, ram + COPY_OVERHEAD_BYTES)), most, spec.cpu.count)


def of_record(record: InstanceRecord) -> Owed:
    return of_fork(record.spec) if shares_ram(record) else of_spec(record.spec)


def _as_it_runs(view: InstanceView) -> InstanceRecord:
    """What was made less and waits for the next start, or for its guest, it has until then."""
    record, status = view.record, view.status
    cpu, memory = record.spec.cpu, record.spec.memory
    cpus, size = max(cpu.count, status.cpus), max(memory.size, status.memory.size)
    if (cpus, size) == (cpu.count, memory.size):
        return record
    has = {
        "cpu": cpu.model_copy(update={"count": cpus}),
        "memory": memory.model_copy(update={"size": size}),
    }
    return record.model_copy(update={"spec": record.spec.model_copy(update=has)})


def shares_ram(record: InstanceRecord) -> bool:
    """It goes on from another's moment in memory, and has not been booted since."""
    origin = record.fork
    return origin is not None and origin.live and not origin.durable and record.wanted.epoch <= 1


def owed_by(host: str, views: Iterable[InstanceView], *, but: str = "") -> Owed:
    """All that `host` owes its active VMs, other than `but`. The frozen RAM that forks of one moment share
    counts once; that of a template is the template's own."""
    total = Owed()
    frozen: dict[str, int] = {}
    for view in views:
        record = view.record
        if record.host != host or view.name == but or not is_active(record, view.status):
            continue
        total += of_record(_as_it_runs(view))
        if shares_ram(record) and record.fork is not None and not record.fork.template:
            frozen[record.fork.moment] = ordinary_ram(record.spec)
    return total + Owed(most=sum(frozen.values()))


def growth(record: InstanceRecord, memory: MemoryMetrics) -> int | None:
    """What a VM that runs could still take; None where it is not known what it has. In huge pages it has
    all of its RAM, and only QEMU could grow."""
    has = memory.resident if memory.private is None else memory.private + (memory.swapped or 0)
    return None if has is None else max(0, of_record(record).most - has)


def with_growth(metrics: Metrics, views: Iterable[InstanceView]) -> Metrics:
    """The same, with what each VM could still grow by."""
    records = {view.record.uid: view.record for view in views}
    return metrics.model_copy(
        update={
            "instances": tuple(
                one.model_copy(
                    update={"memory": one.memory.model_copy(update={"growth": growth(found, one.memory)})}
                )
                if (found := records.get(one.uid)) is not None
                else one
                for one in metrics.instances
            )
        }
    )


def least_limit(spec: InstanceSpec) -> int:
    """Below it a limit would only end the VM: QEMU, and what the smallest guests live with."""
    need, ram = memory_needed(spec), ordinary_ram(spec)
    return need if ram and spec.memory.dedicated else need - ram + min(ram, LEAST_GUEST_BYTES)


def check_reservation(spec: InstanceSpec) -> None:
    """Raises SpecError for a promise that nothing could use, or a limit nothing could live with."""
    memory, need = spec.qos.memory, memory_needed(spec)
    more = max(0, (spec.memory.max or 0) - spec.memory.size)
    if memory.reservation > need + more:
        raise SpecError(
            f"A reservation of {format_size(memory.reservation)} is more than it can ever take: "
            f"{human_size(need + more)}, guest RAM and QEMU together",
            hint="reserve at most memory.size",
            details={"field": ["spec", "qos", "memory", "reservation"]},
        )
    least = least_limit(spec)
    if memory.limit is not None and memory.limit < least:
        ram = ordinary_ram(spec)
        why = (
            f"its memory is taken whole: {human_size(need)}, guest RAM and QEMU together"
            if ram and spec.memory.dedicated
            else f"QEMU alone may take {human_size(need - ram)}"
            + (f", and a guest lives with no less than {human_size(least - need + ram)}" if ram else "")
        )
        raise SpecError(
            f"A memory limit of {format_size(memory.limit)} would end it: {why}",
            hint=f"give at least {format_size(-(-least // MiB) * MiB)}",
            details={"field": ["spec", "qos", "memory", "limit"]},
        )


def against(
    spec: InstanceSpec,
    new: Owed,
    host: HostRecord,
    others: Owed,
    *,
    count: int = 1,
    before: Owed = NOTHING_OWED,
) -> Iterator[Objection]:
    """Why `host`, which owes `others` already, cannot owe `new` as well, `count` times. Of one that it owed
    `before` only what becomes more is looked at."""
    more, capacity = new.times(count), capacity_bytes(host)
    said = f"{count} x " if count > 1 else ""
    reserved = others.promised + more.promised
    if new.promised > before.promised and reserved > capacity:
        yield Objection(
            f"it reserves {said}{human_size(new.promised)} of memory; {human_size(others.promised)} of the "
            f"{human_size(capacity)} there is for VMs is promised already "
            f"({human_size(kept_bytes(host.facts.memory_bytes))} is kept for the host)",
            f"reserve at most {human_size(max(0, capacity - others.promised) // count)}, or less in others",
            capacity=True,
        )
    ratio = host.settings.overcommit.memory
    given = others.given + more.given
    if new.given > before.given and given > ratio * capacity:
        yield Objection(
            f"it may take {said}{human_size(new.given)} of memory; others may take "
            f"{human_size(others.given)} of the {human_size(capacity)} there is for VMs, and "
            f"overcommit.memory is {ratio:g}",
            f"stop other instances, give it less memory, or: inn host set "
            f"overcommit.memory={_ratio_for(given, capacity)}",
            capacity=True,
        )
    most = host.settings.overcommit.cpu
    vcpus = others.vcpus + more.vcpus
    if most is not None and new.vcpus > before.vcpus and vcpus > most * host.facts.cpus:
        yield Objection(
            f"it has {said}{spec.cpu.count} vCPUs; with the {others.vcpus} of others these are "
            f"{vcpus / host.facts.cpus:.1f} for each of the {host.facts.cpus} CPUs, and overcommit.cpu is "
            f"{most:g}",
            "stop other instances, give it fewer vCPUs, or raise the ratio: inn host set overcommit.cpu=N",
            capacity=True,
        )


Rule = Callable[[HostRecord], Iterable[Objection]]


def rule(spec: InstanceSpec, views: Sequence[InstanceView], *, but: str = "") -> Rule:
    """For placement.place."""

    def objections(host: HostRecord) -> Iterable[Objection]:
        return against(spec, of_spec(spec), host, owed_by(host.name, views, but=but))

    return objections


def room_for_forks(
    parent: InstanceRecord,
    count: int,
    hosts: Sequence[HostRecord],
    views: Iterable[InstanceView],
    *,
    live: bool = True,
) -> Iterator[Finding]:
    """Whether the parent's host can owe so many copies what they are promised."""
    host = next((one for one in hosts if one.name == parent.host), None)
    if host is None:
        return
    new = of_fork(parent.spec) if live else of_spec(parent.spec)
    found = list(against(parent.spec, new, host, owed_by(host.name, views), count=count))
    for one in found:
        copies = "a copy" if count == 1 else f"{count} copies"
        what = f"{host.name} cannot take {copies} of {parent.name}: {one.reason}"
        yield block(NoCapacity(what, hint=one.hint))
    if not found and new.promised:
        yield ok(f"{human_size(new.promised * count)} of memory can be promised to them")


def refuse_change(
    record: InstanceRecord, spec: InstanceSpec, hosts: Sequence[HostRecord], views: Sequence[InstanceView]
) -> None:
    """Raises NoCapacity where a VM that runs cannot be promised what `spec` says; less is never refused."""
    host = next((one for one in hosts if one.name == record.host), None)
    before, after = of_record(record), of_record(record.model_copy(update={"spec": spec}))
    if host is None:
        return
    others = owed_by(host.name, views, but=record.name)
    for one in against(spec, after, host, others, before=before):
        raise NoCapacity(f"{host.name} cannot promise that to {record.name}: {one.reason}", hint=one.hint)


def account(host: HostRecord, views: Iterable[InstanceView]) -> Account:
    """What the host owes now."""
    owed, capacity = owed_by(host.name, views), capacity_bytes(host)
    cpus = max(1, host.facts.cpus)
    return Account(
        memory=MemoryAccount(
            capacity=capacity,
            kept=kept_bytes(host.facts.memory_bytes),
            promised=owed.promised,
            given=owed.given,
            worst=owed.most,
            ratio=_ratio(owed.given, capacity),
            worst_ratio=_ratio(owed.most, capacity),
            limit=host.settings.overcommit.memory,
        ),
        cpu=CpuAccount(
            cpus=host.facts.cpus,
            vcpus=owed.vcpus,
            ratio=round(owed.vcpus / cpus, 3),
            limit=host.settings.overcommit.cpu,
        ),
    )


def _ratio(amount: int, capacity: int) -> float:
    return round(amount / max(1, capacity), 3)


def _ratio_for(amount: int, capacity: int) -> str:
    """The least ratio, in tenths, at which this fits."""
    return f"{-(-10 * amount // max(1, capacity)) / 10:g}"
