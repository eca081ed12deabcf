"""`inn list`."""

from __future__ import annotations

import sys
from typing import Any

import click

from innkeeper.cli.app import App, note
from innkeeper.cli.command import verb
from innkeeper.cli.output import age, print_json, print_table
from innkeeper.units import human_size

TITLES = ("NAME", "STATE", "READY", "ACCEL", "CPUS", "MEMORY", "IMAGE", "ADDRESS", "AGE")


@verb(
    "list",
    synopsis="inn list [--state STATE] [-q] [--json]",
    examples="""
inn list
inn list --state running
inn stop $(inn list -q --state running)
inn list --json | jq -r '.[] | select(.accelerator == "tcg") | .name'
""",
)
@click.option("--state", metavar="STATE", help="Only VMs in this state: running, stopped, paused, ...")
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
def list_(app: App, state: str | None, quiet: bool) -> None:
    """List VMs.

    One line per VM, sorted by name. READY says whether the guest is up (its agent answers, or for
    guests without one: it runs); ACCEL is kvm or tcg; AGE is the time since it was created. TCG
    emulates the CPU: it is slower, and not a security boundary against a hostile guest. A VM in state
    template stands still, and others start from it.

    With --json: an array of objects with name, uid, state, ready, template, accelerator, pid, host,
    image, cpus, memory (bytes), addresses, created_at, started_at and note.
    """
    instances = app.client.instances.list_data()
    if state is not None:
        instances = [item for item in instances if state in (item.get("state"), shown_state(item))]
    if app.json:
        print_json(instances)
    elif quiet:
        for item in instances:
            print(item["name"])
    else:
        print_table(TITLES, [_row(item) for item in instances])
        if not instances and sys.stdout.isatty():
            note("no VMs here; make one with inn run tiny")


def shown_state(item: dict[str, Any]) -> object:
    return "template" if item.get("template") else item.get("state")


def _row(item: dict[str, Any]) -> tuple[object, ...]:
    memory = item.get("memory")
    return (
        item["name"],
        shown_state(item),
        "yes" if item.get("ready") else "no",
        item.get("accelerator"),
        item.get("cpus"),
        human_size(memory) if isinstance(memory, int) else memory,
        item.get("image"),
        ", ".join(item.get("addresses") or ()),
        age(item.get("created_at")),
    )
