"""`inn kill`."""

from __future__ import annotations

from innkeeper.cli.app import App
from innkeeper.cli.command import names_argument, verb
from innkeeper.cli.many import each


@verb(
    "kill",
    synopsis="inn kill NAME... [--json]",
    examples="""
inn kill web
inn kill $(inn list -q --state hung)
""",
)
@names_argument
def kill(app: App, names: tuple[str, ...]) -> None:
    """End VMs at once.

    Like pulling the plug: what the guest has not written to its disks is lost. The VM and its disks
    stay; inn start boots it again.
    """
    each(app, names, lambda name: app.instance(name).kill().data)
