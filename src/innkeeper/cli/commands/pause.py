"""`inn pause`."""

from __future__ import annotations

from innkeeper.cli.app import App
from innkeeper.cli.command import names_argument, verb
from innkeeper.cli.many import each


@verb(
    "pause",
    synopsis="inn pause NAME... [--json]",
    examples="""
inn pause web
""",
)
@names_argument
def pause(app: App, names: tuple[str, ...]) -> None:
    """Halt the vCPUs of VMs.

    Memory and devices stay as they are, and the guest does not notice but by its clock. inn resume lets
    it run on.
    """
    each(app, names, lambda name: app.instance(name).pause().data)
