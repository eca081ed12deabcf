"""What `inn host show` says of a host: facts, what its VMs were promised, its NUMA nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from innkeeper.units import format_size, human_size, parse_size

NODE_TITLES: Final = ("NODE", "CPUS", "MEMORY", "FREE", "AVAILABLE", "HUGE PAGES (FREE)", "DISTANCES")
# What people name machine types by; QEMU has one and a half hundred for boards.
_ALIASES: Final = ("q35", "pc", "virt")


def pairs(record: dict[str, Any]) -> list[tuple[str, Any]]:
    """Names and values, in the order they are shown; a value that is empty is not."""
    facts = record["facts"]
    return [("name", record.get("name")), *_facts(facts), *_qos(facts.get("qos", {})), *given_out(record)]


def given_out(record: dict[str, Any]) -> list[tuple[str, Any]]:
    """What its VMs were promised and have, and how far they are bound."""
    return [*_owed(record.get("overcommit")), *_bound(record), *_merged(record)]


def _facts(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "kernel", f"{facts.get('kernel', '')} ({facts.get('architecture', '')})"
    ids = cpu_list(facts.get("cpu_ids", ()))
    yield "cpus", f"{facts.get('cpus')} {f'({ids}) ' if ids else ''}{facts.get('cpu_model', '')}".rstrip()
    available = human_size(facts.get("memory_available_bytes", 0))
    yield "memory", f"{human_size(facts['memory_bytes'])}, {available} available"
    free = facts.get("disk_free_bytes")
    yield "disk free", None if free is None else human_size(free)
    if facts.get("qemu"):
        yield "qemu", f"{facts.get('qemu_version', '')} ({facts['qemu']})"
        yield "machine types", _machines(facts)
    for name, other in sorted(facts.get("foreign", {}).items()):
        yield f"{name} guests", f"emulated by QEMU {other['qemu_version']}"
    yield "kvm", " - ".join(filter(None, (facts.get("kvm"), facts.get("kvm_detail"))))
    yield "kvm repair", facts.get("kvm_repair")
    yield "paging", facts.get("paging")


def _machines(facts: dict[str, Any]) -> str:
    aliases = facts.get("machine_aliases", {})
    known = [f"{name} = {aliases[name]}" for name in _ALIASES if name in aliases]
    return ", ".join([*known, f"{len(facts.get('machine_types', ()))} in all (--json)"])


def _qos(told: dict[str, Any]) -> list[tuple[str, str]]:
    """What can be promised of each resource here; how to get the rest is said once."""
    kept = "reservation (what has one is not swapped out; cgroup v1 guarantees no more)"
    kept = kept if told.get("memory_version") == 1 else "reservation"
    can = {"memory": f"shares, {kept}, limit, swap"}
    lines = [
        (f"qos of {name}", f"no: {told[key]}" if told[key] else can.get(key, "shares, reservation, limit"))
        for key, name in (("cpu", "CPU"), ("memory", "memory"))
        if key in told
    ]
    if "io" in told:
        lines.append(("qos of disks", f"limit; no shares: {told['io']}" if told["io"] else "shares, limit"))
    return [*lines, ("to get it", told["hint"])] if told.get("hint") else lines


def _owed(account: dict[str, Any] | None) -> Iterator[tuple[str, Any]]:
    if not account:
        return
    memory, cpu = account["memory"], account["cpu"]
    size = {name: human_size(memory[name]) for name in ("capacity", "kept", "promised", "given", "worst")}
    allowed = f"overcommit.memory: {memory['limit']:g}"
    yield "memory for VMs", f"{size['capacity']} ({size['kept']} kept for the host)"
    yield "memory promised", f"{size['promised']} (reservations, locked and preallocated RAM)"
    yield "memory given", f"{size['given']}, {memory['ratio']:.2f} of it ({allowed})"
    yield "memory at worst", f"{size['worst']}, {memory['worst_ratio']:.2f} of it"
    limit = "none" if cpu["limit"] is None else f"{cpu['limit']:g}"
    yield "vCPUs given", f"{cpu['vcpus']}, {cpu['ratio']:.2f} for each CPU (overcommit.cpu: {limit})"


def _bound(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    bound = (record.get("settings") or {}).get("vms_memory")
    if bound is not None:
        yield "VMs take", f"{human_size(parse_size(bound))} at most (vms_memory)"


def _merged(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    found = record.get("ksm")
    if not found:
        return
    state = f"on, by {found['by']}" if found["running"] else "off"
    cost = "" if found["cpu"] is None else f", ksmd takes {100 * found['cpu']:.1f} % of a CPU"
    profit = found["profit_bytes"]
    net = "" if profit is None else f" ({human_size(profit)} net)"
    mode = record.get("settings", {}).get("ksm", "")
    yield "ksm", f"{state} ({mode}); {human_size(found['saved_bytes'])} saved{net}{cost}"
    if found["why"]:
        yield "ksm because", found["why"]


def node_row(node: dict[str, Any]) -> tuple[object, ...]:
    pools = [
        f"{pool['total']} x {format_size(pool['page_bytes'])} ({pool['free'] - pool.get('reserved', 0)})"
        for pool in node.get("hugepages", ())
    ]
    return (
        node["id"],
        cpu_list(node.get("cpus", ())),
        *(human_size(node.get(what, 0)) for what in ("memory_bytes", "free_bytes", "available_bytes")),
        ", ".join(pools),
        " ".join(str(one) for one in node.get("distances", ())),
    )


def cpu_list(cpus: Sequence[int]) -> str:
    """`0-3,8` from 0, 1, 2, 3, 8."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
