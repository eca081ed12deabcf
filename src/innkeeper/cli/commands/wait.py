"""`inn wait`."""

from __future__ import annotations

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import name_argument, verb
from innkeeper.cli.output import print_json
from innkeeper.cli.types import timeout_option


@verb(
    "wait",
    synopsis="inn wait NAME [--for ready|running|stopped] [--timeout TIME] [--json]",
    examples="""
inn wait web && inn exec web -- uptime
inn wait batch --for stopped --timeout 2h
""",
    exit_status={1: "The time was over before, or it can no longer happen."},
)
@name_argument
@click.option(
    "--for",
    "what",
    type=click.Choice(["ready", "running", "stopped"]),
    default="ready",
    help="What to wait for (default: ready).",
)
@timeout_option("Give up after this time, such as 30s or 5m.")
def wait(app: App, name: str, what: str, timeout_s: float | None) -> None:
    """Wait until a VM is ready, running or stopped.

    Ready means that the guest is up: its agent answers, or for guests without an agent, that it
    runs. Prints nothing, unless --json: then the VM as inn show prints it.
    """
    data = app.instance(name).wait(what, timeout_s=timeout_s).data
    if app.json:
        print_json(data)
