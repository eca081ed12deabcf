"""`inn host show`."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import click

from innkeeper.cli import hostview
from innkeeper.cli.app import App
from innkeeper.cli.command import CONTEXT, LazyGroup, Table, verb
from innkeeper.cli.output import print_json, print_pairs, print_table
from innkeeper.cli.specargs import pairs
from innkeeper.errors import BadRequest
from innkeeper.spec.overcommit import KSM_MODES, MAX_RATIO, MIN_RATIO, MIN_VMS_MEMORY
from innkeeper.units import format_size, parse_size

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
    print_pairs(hostview.pairs(record))
    if nodes := record["facts"].get("numa"):
        print()
        print_table(hostview.NODE_TITLES, [hostview.node_row(node) for node in nodes])


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
    print_pairs(hostview.given_out(record) if set(wanted) - _OF_PAGES else [])
    if "hugepages" not in wanted:
        return
    for one in record["facts"]["numa"]:
        for pool in one.get("hugepages", ()):
            print(f"node {one['id']}: {pool['total']} x {format_size(pool['page_bytes'])}")


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
            found["vms_memory"] = "none" if value in ("", "none") else _bound_of(value)
        else:
            raise BadRequest(
                f"No such setting of a host: {key}",
                hint="there are hugepages.2MiB, hugepages.1GiB, overcommit.memory, overcommit.cpu, ksm and"
                " vms_memory",
            )
    return found


def _bound_of(value: str) -> int:
    found = parse_size(value)
    if found < MIN_VMS_MEMORY:
        raise BadRequest(
            f"Too little memory for any VM: {value!r}",
            hint=f"give vms_memory at least {format_size(MIN_VMS_MEMORY)}, or none",
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
