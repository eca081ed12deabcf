"""`inn clone`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import click

from innkeeper.cli.app import App, note
from innkeeper.cli.command import name_argument, verb
from innkeeper.cli.interrupts import orderly_signals
from innkeeper.cli.output import print_json
from innkeeper.cli.types import timeout_option

_LOOK_S = 0.3


@verb(
    "clone",
    synopsis="inn clone NAME NEW [--no-start] [--wait] [--ssh-keys] [--json]",
    examples="""
inn clone web web2                    a copy of its own, started
inn stop web && inn clone web web2 --no-start
""",
    exit_status={4: "The name is taken, a disk cannot be copied, or there is no room."},
)
@name_argument
@click.argument("new", metavar="NEW")
@click.option("--no-start", is_flag=True, help="Do not start it.")
@click.option("--wait", is_flag=True, help="Return when its guest is ready.")
@click.option("--ssh-keys", is_flag=True, help="Give it SSH host keys of its own at its first boot.")
@timeout_option("Give up, and remove it, when it is not made after this time.")
def clone(
    app: App, name: str, new: str, no_start: bool, wait: bool, ssh_keys: bool, timeout_s: float | None
) -> None:
    """Make an independent copy of a VM.

    Its disks are copied as a whole: the copy shares nothing with the VM, takes as much disk space, and
    boots. Of a running VM the disks are copied as they are at this moment, while it runs on; what its
    guest had not written yet is missing, as after a power cut. A copy of its memory is inn fork.

    The copy has its own MAC addresses and cloud-init instance id, and once its guest agent answers its
    own host name and machine-id. After ctrl-C or an error nothing is left of it.
    """
    with orderly_signals(), _shown(app, new):
        made = app.instance(name).clone(
            new,
            ssh_keys=ssh_keys,
            start=not no_start,
            wait="ready" if wait else "running",
            timeout_s=timeout_s,
        )
    if app.json:
        print_json(made.data)
        return
    print(made.name)
    if made.data.get("note"):
        note(f"{made.name}: {made.data['note']}")


def _shown(app: App, new: str) -> AbstractContextManager[None]:
    """How much is copied, for a person at a terminal."""
    from innkeeper.cli.progress import watched

    def look() -> dict[str, Any] | None:
        share = app.client.instances.get_data(new)["status"].get("progress")
        return {"stage": "copy", "fraction": share, "detail": new} if share is not None else None

    return watched(look, every_s=_LOOK_S)
