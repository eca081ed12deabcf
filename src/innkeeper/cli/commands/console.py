"""`inn console`."""

from __future__ import annotations

import os

import click

from innkeeper.cli.app import App, note
from innkeeper.cli.command import name_argument, verb
from innkeeper.cli.output import print_json
from innkeeper.cli.types import timeout_option


@verb(
    "console",
    synopsis="inn console NAME [--escape KEY] [--timeout TIME]\ninn console NAME --json",
    examples="""
inn console web
inn console web --escape ctrl-a
echo reboot | inn console web --timeout 5s
inn console web </dev/null | tee boot.log
""",
    exit_status={0: "Detached, or the VM ended.", 4: "It does not run."},
)
@name_argument
@click.option("--escape", default="ctrl-]", metavar="KEY", help="Key that detaches (default: ctrl-]; none).")
@timeout_option("Detach after this time.")
def console(app: App, name: str, escape: str, timeout_s: float | None) -> None:
    """Attach to the serial console.

    What was said last is shown first. Every key goes to the guest, ctrl-C included, except the one
    that detaches; the VM runs on afterwards. Several people may be attached at once: all see the
    same, and all can type.

    With input from a pipe or file: it is typed into the console, and the output is printed until
    the VM ends, --timeout, or ctrl-C. With --json: nothing is attached; prints where the console's
    log lies.
    """
    from innkeeper.cli.terminal import attach, parse_escape

    parse_escape(escape)
    if app.json:
        data = app.client.instances.get_data(name)
        print_json({"name": name, "state": data.get("state"), "paths": data.get("paths", {})})
        return
    left = attach(app, name, escape=escape, timeout_s=timeout_s)
    if os.isatty(2):
        note(f"detached from {name}, which runs on" if left else f"the console of {name} ended")
