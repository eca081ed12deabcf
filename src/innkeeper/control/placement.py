"""Which host an instance is to run on. Pure: hosts and promises in, a choice or reasons out.

Every host is asked for all its objections, and the refusal carries all of them: the user reads
there, not in a log, why nothing fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from innkeeper.control.numa import Demand, Promise, choose, on_node
from innkeeper.errors import NoCapacity, Unsupported
from innkeeper.spec.accelerator import choose_accelerator
from innkeeper.spec.architecture import EMULATED, missing_qemu
from innkeeper.spec.host import HostFacts, HostNode, HostRecord
from innkeeper.spec.instance import InstanceSpec
from innkeeper.spec.numa import GuestNuma, NodeShare, parse_cpu_list
from innkeeper.spec.overcommit import needed_now
from innkeeper.units import MiB, human_size

# What QEMU takes beside the guest's RAM: measured 32 MB private for an idle tiny guest, more with
# devices and translated code; and 1/512 of the RAM for its page tables, as much again for bitmaps.
QEMU_OVERHEAD_BYTES: Final = 64 * MiB
OVERHEAD_DIVISOR: Final = 256
# Below this a guest's first writes would already fill the file system its disks lie on.
MIN_DISK_FREE_BYTES: Final = 128 * MiB


@dataclass(frozen=True, slots=True)
class Claim:
    """Memory promised to an instance that the host's available memory does not show as taken yet."""

    host: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Placement:
    """The choice: where, and as what it would run there."""

    host: str
    machine_type: str  # versioned
    accelerator: Literal["kvm", "tcg"]
    memory_bytes: int  # guest RAM and overhead
    nodes: tuple[NodeShare, ...] = ()  # where on the host


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a host cannot take it. `capacity`: it could, with more room."""

    reason: str
    hint: str = ""
    capacity: bool = False


def memory_needed(spec: InstanceSpec) -> int:
    """Guest RAM and what QEMU needs beside it; of the ordinary memory, in which no huge page is."""
    return ordinary_ram(spec) + QEMU_OVERHEAD_BYTES + spec.memory.size // OVERHEAD_DIVISOR


def ordinary_ram(spec: InstanceSpec) -> int:
    return 0 if spec.memory.hugepages else spec.memory.size


def place(
    spec: InstanceSpec,
    hosts: Sequence[HostRecord],
    claims: Iterable[Claim],
    promises: Mapping[str, Sequence[Promise]] = MappingProxyType({}),
    *,
    to_run: bool = True,
    rules: Iterable[Callable[[HostRecord], Iterable[Objection]]] = (),
) -> Placement:
    """The host with the most memory left of those that can run it; by name among equals.

    With `to_run` it must fit into what is available now, otherwise only into the host as such. `promises`
    has what each host gave its instances of its NUMA nodes; `rules` say what else is against a host.
    Raises NoCapacity when a host would do if it had room, Unsupported when none would.
    """
    promised: dict[str, int] = {}
    for claim in claims:
        promised[claim.host] = promised.get(claim.host, 0) + claim.memory_bytes
    objections: dict[str, list[Objection]] = {}
    best: tuple[int, str, HostRecord] | None = None
    shares: dict[str, tuple[NodeShare, ...]] = {}
    for host in hosts:
        left = host.facts.memory_available_bytes - promised.get(host.name, 0)
        against = [*_unsuited(spec, facts_for(spec, host.facts)), *_too_small(spec, host, left, to_run)]
        against += [one for rule in rules for one in rule(host)]
        if to_run and not against:
            try:
                shares[host.name] = placed_on_nodes(spec, host.facts.numa, promises.get(host.name, ()))
            except NoCapacity as error:
                against.append(Objection(error.message, error.hint, capacity=True))
        if against:
            objections[host.name] = against
        elif best is None or (-left, host.name) < best[:2]:
            best = (-left, host.name, host)
    if best is None:
        raise _refusal(objections)
    chosen = best[2]
    facts = facts_for(spec, chosen.facts)
    return Placement(
        chosen.name,
        pinned_machine(spec.machine.type, facts) or spec.machine.type,
        choose_accelerator(spec.machine.accelerator, facts.kvm, facts.kvm_detail)[0],
        memory_needed(spec),
        shares.get(chosen.name, ()),
    )


def facts_for(spec: InstanceSpec, facts: HostFacts) -> HostFacts:
    """The facts as they are for a guest of this architecture: another QEMU, and never KVM."""
    if spec.machine.architecture == facts.architecture:
        return facts
    foreign = facts.foreign.get(spec.machine.architecture)
    own = foreign.model_dump() if foreign else {"qemu": ""}
    emulated = {"kvm": "missing", "kvm_detail": EMULATED, "kvm_repair": ""}
    return facts.model_copy(update={**own, **emulated})


def placed_on_nodes(
    spec: InstanceSpec, nodes: Sequence[HostNode], promises: Sequence[Promise]
) -> tuple[NodeShare, ...]:
    """Its shares of the host's NUMA nodes: of each of the guest's nodes, where the spec lists those. Raises
    NoCapacity."""
    if not nodes:
        return ()
    memory = spec.memory
    if not isinstance(spec.numa, GuestNuma):
        return choose(
            Demand(spec.cpu.count, memory.size, memory.page_bytes, memory.dedicated), nodes, promises
        )
    found: list[NodeShare] = []
    for number, guest in enumerate(spec.numa.nodes):
        demand = Demand(len(parse_cpu_list(guest.cpus)), guest.memory, memory.page_bytes, memory.dedicated)
        known = [*promises, *(promise_of(share, spec, shown=False) for share in found)]
        if guest.host_node is not None:
            made: tuple[NodeShare, ...] = (on_node(demand, guest.host_node, nodes, known),)
        else:
            made = choose(demand, nodes, known)
        found += [share.model_copy(update={"guest": number}) for share in made]
    return tuple(found)


def promise_of(share: NodeShare, spec: InstanceSpec, *, shown: bool) -> Promise:
    memory = spec.memory
    return Promise(share.node, share.cpus, share.memory_bytes, memory.page_bytes, memory.dedicated, shown)


def pinned_machine(wanted: str, facts: HostFacts) -> str | None:
    """The versioned machine type that `wanted` is on this host; None if it has none such."""
    machine = facts.machine_aliases.get(wanted, wanted)
    return machine if machine in facts.machine_types else None


def absent_cpus(spec: InstanceSpec, facts: HostFacts) -> Objection | None:
    """The objection of a host that lacks CPUs something is pinned to."""
    absent = sorted(spec.cpu.host_cpus - set(facts.cpu_ids))
    if not absent or not facts.cpu_ids:
        return None
    named = ", ".join(map(str, absent[:8]))
    return Objection(
        f"it is pinned to CPU {named}, and the host's daemon may use {_ranges(facts.cpu_ids)}",
        "change cpu.pin, cpu.emulator or cpu.iothreads",
    )


def _ranges(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    whole = len(set(numbers)) == high - low + 1
    return f"{low}-{high}" if whole and high > low else ", ".join(map(str, sorted(numbers)))


def _unsuited(spec: InstanceSpec, facts: HostFacts) -> list[Objection]:
    """What no amount of room would change."""
    if not facts.qemu:
        return [Objection(*missing_qemu(spec.machine.architecture))]
    against: list[Objection] = []
    try:
        choose_accelerator(spec.machine.accelerator, facts.kvm, facts.kvm_detail, facts.kvm_repair)
    except Unsupported as error:
        against.append(Objection(error.message, error.hint))
    if absent := absent_cpus(spec, facts):
        against.append(absent)
    if pinned_machine(spec.machine.type, facts) is None:
        known = ", ".join(sorted(facts.machine_aliases)) or "none"
        against.append(
            Objection(
                f"QEMU {facts.qemu_version} has no machine type {spec.machine.type}".replace("  ", " "),
                f"choose one of: {known}",
            )
        )
    return against


def _too_small(spec: InstanceSpec, host: HostRecord, left: int, to_run: bool) -> list[Objection]:
    """What it lacks in room: as such, or now."""
    facts = host.facts
    needed = memory_needed(spec)
    against: list[Objection] = []
    ram = ordinary_ram(spec)
    parts = f"{human_size(ram)} for the guest, {human_size(needed - ram)} for QEMU"
    if needed > facts.memory_bytes:
        against.append(
            Objection(
                f"it needs {human_size(needed)} of memory ({parts}) and the host has "
                f"{human_size(facts.memory_bytes)}",
                "give it less memory",
                capacity=True,
            )
        )
    elif to_run and needed_now(needed, host.settings.overcommit.memory) > left:
        against.append(
            Objection(
                f"it needs {human_size(needed)} of memory ({parts}) and "
                f"{human_size(max(left, 0))} is available",
                "stop other instances (inn list), or give it less memory",
                capacity=True,
            )
        )
    free = facts.disk_free_bytes
    if to_run and free is not None and free < MIN_DISK_FREE_BYTES:
        against.append(
            Objection(
                f"only {human_size(free)} of disk space is free where its disks lie",
                "free some: remove instances (inn rm) or images (inn image rm)",
                capacity=True,
            )
        )
    return against


def _refusal(objections: dict[str, list[Objection]]) -> NoCapacity | Unsupported:
    if not objections:
        return NoCapacity("No host is there to run it", hint="is its daemon running? see inn host show")
    # A host that lacks nothing but room decides: with room it would do.
    by_room = {host: found for host, found in objections.items() if all(one.capacity for one in found)}
    counted = by_room or objections
    told = "; ".join(
        f"{host}: {', and '.join(one.reason for one in found)}" for host, found in sorted(objections.items())
    )
    hint = next((one.hint for _, found in sorted(counted.items()) for one in found if one.hint), "")
    details = {"hosts": {host: [one.reason for one in found] for host, found in sorted(objections.items())}}
    error = NoCapacity if by_room else Unsupported
    return error(f"No host can run it: {told}", hint=hint, details=details)
