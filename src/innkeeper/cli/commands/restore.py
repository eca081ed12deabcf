"""`inn restore`."""

from __future__ import annotations

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import names_argument, verb
from innkeeper.cli.many import each
from innkeeper.cli.types import timeout_option


@verb(
    "restore",
    synopsis="inn restore NAME... [--no-wait] [--timeout TIME] [--json]",
    examples="""
inn restore web
""",
    exit_status={4: "It runs, or what was saved does not fit this host (QEMU, machine type, CPU)."},
)
@names_argument
@click.option("--no-wait", is_flag=True, help="Return when it runs, before its agent answers.")
@timeout_option("Give up waiting after this time, such as 30s or 5m.")
def restore(app: App, names: tuple[str, ...], no_wait: bool, timeout_s: float | None) -> None:
    """Let saved VMs run on from where inn save stopped them.

    What was saved is removed then. The guest's clock is set. To go back to any other moment see
    inn snapshot.
    """
    wait = "running" if no_wait else "ready"
    each(app, names, lambda name: app.instance(name).restore(wait=wait, timeout_s=timeout_s).data)
