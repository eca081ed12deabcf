"""`inn start`."""

from __future__ import annotations

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import names_argument, verb
from innkeeper.cli.many import each
from innkeeper.cli.types import timeout_option


@verb(
    "start",
    synopsis="inn start NAME... [--wait running|ready] [--timeout TIME] [--json]",
    examples="""
inn start web
inn start web db --wait ready --timeout 2m
""",
)
@names_argument
@click.option(
    "--wait", type=click.Choice(["running", "ready"]), default="running", help="Return when it is running"
    " (the default), or when the guest is up.",
)  # fmt: skip
@timeout_option("Give up waiting after this time, such as 30s or 5m.")
def start(app: App, names: tuple[str, ...], wait: str, timeout_s: float | None) -> None:
    """Start VMs.

    Prints each name when its VM runs. To start one that runs already is no error.
    """
    each(app, names, lambda name: app.instance(name).start(wait=wait, timeout_s=timeout_s).data)
