"""`inn host show`."""

from __future__ import annotations

from typing import Any, ClassVar

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import CONTEXT, LazyGroup, Table, verb
from innkeeper.cli.output import print_json, print_pairs
from innkeeper.units import human_size


class HostGroup(LazyGroup):
    table: ClassVar[Table] = {"show": ("host", "Show CPUs, memory, accelerator and QEMU.")}
    examples = """
inn host show
inn host show --json
"""


@click.group("host", cls=HostGroup, context_settings=CONTEXT)
def host() -> None:
    """Show what this host has."""


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

    What the daemon found when it started. inn doctor tests it, and says what to do.
    """
    record = app.client.host.show()
    if app.json:
        print_json(record)
        return
    facts = record.get("facts", record)
    print_pairs([("name", record.get("name")), *(_pair(name, value) for name, value in facts.items())])


def _pair(name: str, value: Any) -> tuple[str, Any]:
    title = name.removesuffix("_bytes").replace("_", " ")
    if name.endswith("_bytes") and isinstance(value, int):
        return title, human_size(value)
    if isinstance(value, list):
        return title, ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return title, ", ".join(f"{key}={item}" for key, item in value.items())
    return title, value
