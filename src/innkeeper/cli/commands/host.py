"""`inn host show`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import CONTEXT, LazyGroup, Table, verb
from innkeeper.cli.output import print_json, print_pairs, print_table
from innkeeper.cli.specargs import pairs
from innkeeper.errors import BadRequest
from innkeeper.units import format_size, human_size, parse_size


class HostGroup(LazyGroup):
    table: ClassVar[Table] = {
        "show": ("host", "Show CPUs, memory, NUMA nodes, accelerator and QEMU."),
        "set": ("host", "Reserve huge pages."),
    }
    examples = """
inn host show
inn host set hugepages.2MiB=512
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

    What the daemon found when it started, and its NUMA nodes with what is free on them now. inn doctor
    tests it, and says what to do.
    """
    record = app.client.host.show()
    if app.json:
        print_json(record)
        return
    facts = record.get("facts", record)
    plain = [_pair(name, value) for name, value in facts.items() if name not in ("numa", "qos")]
    print_pairs([("name", record.get("name")), *plain, *_qos(facts.get("qos", {}))])
    if facts.get("numa"):
        print()
        print_table(
            ("NODE", "CPUS", "MEMORY", "FREE", "AVAILABLE", "HUGE PAGES (FREE)", "DISTANCES"),
            [_node(node) for node in facts["numa"]],
        )


@verb(
    "set",
    synopsis="inn host set hugepages.SIZE=PAGES... [--node NODE] [--json]",
    examples="""
inn host set hugepages.2MiB=512                    1 GiB for VMs with memory.hugepages=2MiB
inn host set hugepages.2MiB=256 --node 1           on one NUMA node
inn host set hugepages.2MiB=0                      give them back
""",
    exit_status={4: "Not so many can be reserved, and nothing was changed; or fewer are in use."},
)
@click.argument("settings", metavar="hugepages.SIZE=PAGES...", nargs=-1, required=True)
@click.option("--node", type=int, metavar="NODE", help="On this NUMA node; default: on all, evenly.")
def set_(app: App, settings: tuple[str, ...], node: int | None) -> None:
    """Reserve huge pages for VMs, or give them back.

    What the kernel really reserved is read back: if it found fewer than asked for, the pool is put back as
    it was, and the error says how many are missing. After a boot of the host the daemon reserves them again.
    """
    record = app.client.host.set_hugepages(_pools(settings), node=node)
    if app.json:
        print_json(record)
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


def _pools(settings: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, value in pairs(settings, "setting").items():
        kind, _, size = key.partition(".")
        if kind != "hugepages" or not size:
            raise BadRequest(f"No such setting of a host: {key}", hint="use hugepages.2MiB or hugepages.1GiB")
        parse_size(size)
        if not (value.isascii() and value.isdigit()):
            raise BadRequest(f"Not a number of pages: {value!r}", hint=f"write it {key}=512")
        found[size] = int(value)
    return found


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
