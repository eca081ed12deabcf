"""`inn stop`."""

from __future__ import annotations

from innkeeper.cli.app import App
from innkeeper.cli.command import names_argument, verb
from innkeeper.cli.many import each
from innkeeper.cli.types import timeout_option


@verb(
    "stop",
    synopsis="inn stop NAME... [--timeout TIME] [--json]",
    examples="""
inn stop web
inn stop web --timeout 2m || inn kill web
""",
    exit_status={1: "The guest did not shut down in time (it runs on), or it failed."},
)
@names_argument
@timeout_option("How long the guest may take (default: 60s).")
def stop(app: App, names: tuple[str, ...], timeout_s: float | None) -> None:
    """Ask VMs to shut down, and wait.

    The guest is asked through its agent or the power button, and gets the time to do it. One that
    does not shut down in time is left running and named in the error; inn kill ends it. To stop a
    VM that is stopped already is no error.
    """
    each(app, names, lambda name: app.instance(name).stop(timeout_s=timeout_s).data)
