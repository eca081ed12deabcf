"""`inn screenshot`."""

from __future__ import annotations

import os
import sys

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import name_argument, verb
from innkeeper.cli.output import print_json, write_bytes


@verb(
    "screenshot",
    synopsis="inn screenshot NAME [-o FILE] [--json]",
    examples="""
inn screenshot web
inn screenshot web -o /tmp/now.png
inn screenshot web -o - | display
""",
    exit_status={4: "It does not run, or has no graphics adapter (--vga none)."},
)
@name_argument
@click.option("-o", "--output", metavar="FILE", help="Where to write it (default: NAME.png; -: output).")
def screenshot(app: App, name: str, output: str | None) -> None:
    """Save what the screen shows as PNG.

    An existing file is replaced.
    """
    path = output or f"{name}.png"
    if path == "-":
        if app.json:
            raise click.UsageError("--json and -o - exclude each other")
        if sys.stdout.isatty():
            raise click.UsageError("A PNG is nothing for a terminal: name a file, or a pipe")
    image = app.instance(name).screenshot()
    if path == "-":
        write_bytes(image)
        return
    with open(path, "wb") as file:
        file.write(image)
    if app.json:
        print_json({"name": name, "path": os.path.abspath(path), "bytes": len(image)})
    else:
        print(path)
