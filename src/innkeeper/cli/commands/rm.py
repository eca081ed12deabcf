"""`inn rm`."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import names_argument, verb
from innkeeper.cli.many import each


@verb(
    "rm",
    synopsis="inn rm NAME... [-f] [--snapshots] [--json]",
    examples="""
inn rm web
inn rm -f $(inn list -q)
""",
    exit_status={
        4: "It is running, and -f was not given; or it has snapshots, and --snapshots was not given."
    },
)
@names_argument
@click.option("-f", "--force", is_flag=True, help="Kill it first if it runs.")
@click.option("--snapshots", is_flag=True, help="Remove its snapshots with it.")
def rm(app: App, names: tuple[str, ...], force: bool, snapshots: bool) -> None:
    """Remove VMs and their disks.

    Everything that belongs to the VM goes: its disks, firmware variables and logs. A disk image
    that was given by path (--disk PATH, --cdrom) is used in place, and stays. A VM with snapshots is
    removed only with --snapshots.
    """

    def remove(name: str) -> dict[str, Any]:
        app.instance(name).remove(force=force, snapshots=snapshots)
        return {"name": name, "removed": True}

    each(app, names, remove)
