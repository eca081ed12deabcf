"""`inn restart`."""

from __future__ import annotations

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import names_argument, verb
from innkeeper.cli.many import each
from innkeeper.cli.types import timeout_option


@verb(
    "restart",
    synopsis="inn restart NAME... [--wait running|ready] [--timeout TIME] [--json]",
    examples="""
inn restart web
inn restart web --wait ready
""",
)
@names_argument
@click.option(
    "--wait", type=click.Choice(["running", "ready"]), default="running", help="Return when it is running"
    " again (the default), or when the guest is up.",
)  # fmt: skip
@timeout_option("Give up waiting after this time, such as 30s or 5m.")
def restart(app: App, names: tuple[str, ...], wait: str, timeout_s: float | None) -> None:
    """Stop and start VMs.

    The guest is asked to shut down, and then started in a new QEMU process: changes that need a
    restart take effect. A stopped VM is started.
    """
    each(app, names, lambda name: app.instance(name).restart(wait=wait, timeout_s=timeout_s).data)
