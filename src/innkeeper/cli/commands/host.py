"""`inn host show`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import CONTEXT, LazyGroup, Table, verb
from innkeeper.cli.output import print_json, print_pairs, print_table
from innkeeper.cli.specargs import pairs
from innkeeper.errors import BadRequest
from innkeeper.spec.overcommit import KSM_MODES, MAX_RATIO, MIN_RATIO
from innkeeper.units import format_size, human_size, parse_size

_OF_PAGES: Final = {"hugepages", "node"}


class HostGroup(LazyGroup):
    table: ClassVar[Table] = {
        "show": ("host", "Show CPUs, memory, NUMA nodes, accelerator and QEMU."),
        "set": ("host", "Reserve huge pages, set how far memory and CPUs are overcommitted."),
    }
    examples = """
inn host show
inn host set hugepages.2MiB=512
inn host set overcommit.memory=1.5 ksm=never
"""


@click.group("host", cls=HostGroup, context_settings=CONTEXT)
def host() -> None:
    """Show what this host has, and set what it keeps for VMs."""


@verb(
    "show",
    synopsis="inn host show [--json]",
    examples="""
inn host show
inn host show --json | jq .facts.kvm
""",
)
def show(app: App) -> None:
    """Show CPUs, memory, accelerator and QEMU of this host.

    What the daemon found when it started, and its NUMA nodes with what is free on them now; what its
    running VMs were promised, what they may take, and what they could take at worst; and whether equal
    pages are merged. inn doctor tests it, and says what to do.
    """
    record = app.client.host.show()
    if app.json:
        print_json(record)
        return
    facts = record.get("facts", record)
    plain = [_pair(name, value) for name, value in facts.items() if name not in ("numa", "qos")]
    owed = [*_owed(record.get("overcommit")), *_bound(record), *_merged(record)]
    print_pairs([("name", record.get("name")), *plain, *_qos(facts.get("qos", {})), *owed])
    if facts.get("numa"):
        print()
        print_table(
            ("NODE", "CPUS", "MEMORY", "FREE", "AVAILABLE", "HUGE PAGES (FREE)", "DISTANCES"),
            [_node(node) for node in facts["numa"]],
        )


@verb(
    "set",
    synopsis="inn host set SETTING=VALUE... [--node NODE] [--json]",
    examples="""
inn host set hugepages.2MiB=512                    1 GiB for VMs with memory.hugepages=2MiB
inn host set hugepages.2MiB=256 --node 1           on one NUMA node
inn host set hugepages.2MiB=0                      give them back
inn host set overcommit.memory=1.5                 VMs may be given half as much again as there is
inn host set overcommit.cpu=8                      at most 8 vCPUs for each CPU; none: any number
inn host set vms_memory=20GiB                      balloons keep all VMs together below; none: no such bound
inn host set ksm=never                             no merging of equal pages; auto; always
""",
    exit_status={4: "Not so many can be reserved, and nothing was changed; or fewer are in use."},
)
@click.argument("settings", metavar="SETTING=VALUE...", nargs=-1, required=True)
@click.option("--node", type=int, metavar="NODE", help="On this NUMA node; default: on all, evenly.")
def set_(app: App, settings: tuple[str, ...], node: int | None) -> None:
    """Reserve huge pages for VMs, and set what this host gives out beyond what it has.

    Of huge pages what the kernel really reserved is read back: if it found fewer than asked for, the pool is
    put back as it was, and the error says how many are missing. After a boot the daemon reserves them again.
    Memory that is reserved (qos.memory.reservation) is never given out twice, whatever overcommit.memory is.
    """
    wanted = _wanted(pairs(settings, "setting"))
    if node is not None:
        if "hugepages" not in wanted:
            raise BadRequest("--node is for huge pages", hint="leave it out: other settings are the host's")
        wanted["node"] = node
    record = app.client.host.set(**wanted)
    if app.json:
        print_json(record)
        return
    told = [*_owed(record.get("overcommit")), *_bound(record), *_merged(record)]
    print_pairs(told if set(wanted) - _OF_PAGES else [])
    if "hugepages" not in wanted:
        return
    for one in record["facts"]["numa"]:
        for pool in one.get("hugepages", ()):
            print(f"node {one['id']}: {pool['total']} x {format_size(pool['page_bytes'])}")


def _qos(told: dict[str, str]) -> list[tuple[str, str]]:
    """What can be promised of each resource here; how to get the rest is said once."""
    lines = [
        (f"qos of {name}", f"no: {told[key]}" if told[key] else "shares, reservation, limit")
        for key, name in (("cpu", "CPU"), ("memory", "memory"), ("io", "disks"))
        if key in told
    ]
    return [*lines, ("to get it", told["hint"])] if told.get("hint") else lines


def _wanted(settings: dict[str, str]) -> dict[str, Any]:
    """The body of the request."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        kind, _, rest = key.partition(".")
        if kind == "hugepages" and rest:
            parse_size(rest)
            if not (value.isascii() and value.isdigit()):
                raise BadRequest(f"Not a number of pages: {value!r}", hint=f"write it {key}=512")
            found.setdefault("hugepages", {})[rest] = int(value)
        elif kind == "overcommit" and rest in ("memory", "cpu"):
            found.setdefault("overcommit", {})[rest] = _ratio(key, value)
        elif key == "ksm":
            if value not in KSM_MODES:
                raise BadRequest(f"Not a way to merge pages: {value!r}", hint=f"use {', '.join(KSM_MODES)}")
            found["ksm"] = value
        elif key == "vms_memory":
            found["vms_memory"] = value if value == "none" else parse_size(value)
        else:
            raise BadRequest(
                f"No such setting of a host: {key}",
                hint="there are hugepages.2MiB, hugepages.1GiB, overcommit.memory, overcommit.cpu, ksm and"
                " vms_memory",
            )
    return found


def _ratio(key: str, value: str) -> float | None:
    if key == "overcommit.cpu" and value in ("", "none"):
        return None
    try:
        ratio = float(value)
    except ValueError:
        ratio = 0.0
    if not MIN_RATIO <= ratio <= MAX_RATIO:
        raise BadRequest(
            f"Not a ratio: {value!r}",
            hint=f"write it {key}=1.5; from {MIN_RATIO:g} to {MAX_RATIO:g}"
            + (", or none" if key == "overcommit.cpu" else ""),
        )
    return ratio


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


def _node(node: dict[str, Any]) -> tuple[object, ...]:
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


def _pair(name: str, value: Any) -> tuple[str, Any]:
    title = name.removesuffix("_bytes").replace("_", " ")
    if name.endswith("_bytes") and isinstance(value, int):
        return title, human_size(value)
    if isinstance(value, list):
        return title, ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return title, ", ".join(f"{key}={item}" for key, item in value.items())
    return title, value
