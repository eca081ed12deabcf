"""`inn resume`."""

from __future__ import annotations

from innkeeper.cli.app import App
from innkeeper.cli.command import names_argument, verb
from innkeeper.cli.many import each


@verb(
    "resume",
    synopsis="inn resume NAME... [--json]",
    examples="""
inn resume web
""",
)
@names_argument
def resume(app: App, names: tuple[str, ...]) -> None:
    """Let paused VMs run on.

    The guest's clock is set again where its agent answers. To resume a VM that runs is no error.
    """
    each(app, names, lambda name: app.instance(name).resume().data)
