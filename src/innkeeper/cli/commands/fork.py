"""`inn fork`."""

from __future__ import annotations

import click

from innkeeper.cli.app import App, note
from innkeeper.cli.command import name_argument, verb
from innkeeper.cli.output import print_json
from innkeeper.cli.types import timeout_option


@verb(
    "fork",
    synopsis="inn fork NAME [--count N] [--name PATTERN] [--cpus N] [--ssh-keys] [--rm] [--no-start]"
    " [--json]",
    examples="""
inn fork web                          one copy: web-1
inn fork web --count 10 --name ci-{}  ten copies: ci-1 to ci-10
inn fork web --name try --rm          a copy that goes when it is shut down
inn fork web --cpus 4                 of a stopped VM: a linked clone with four vCPUs
""",
)
@name_argument
@click.option("--count", metavar="N", type=click.IntRange(1, 1000), default=1, help="How many copies.")
@click.option(
    "--name", "pattern", metavar="PATTERN", default="",
    help="Name of the copies, {} for the number (default: NAME-{}, the next free numbers).",
)  # fmt: skip
@click.option("--cpus", type=click.IntRange(1, 255), metavar="N", help="Of a stopped VM: vCPUs of each copy.")
@click.option("--ssh-keys", is_flag=True, help="Give each copy SSH host keys of its own.")
@click.option("--rm", "remove", is_flag=True, help="Remove each copy when it is shut down.")
@click.option("--no-start", is_flag=True, help="Of a stopped VM: do not start the copies.")
@click.option("--no-wait", is_flag=True, help="Return when the copies run, before their agents answer.")
@timeout_option("Give up waiting after this time, such as 30s or 5m.")
def fork(
    app: App,
    name: str,
    count: int,
    pattern: str,
    cpus: int | None,
    ssh_keys: bool,
    remove: bool,
    no_start: bool,
    no_wait: bool,
    timeout_s: float | None,
) -> None:
    """Make copies of a VM as it is now.

    Of a running VM the copies run on from exactly this moment: memory and disks are shared until one
    side writes. The VM itself stands still for some milliseconds (printed) and runs on with its consoles
    and connections. Each copy gets its own name, MAC addresses, machine-id, random seed and clock before
    it is reported ready. Of a stopped VM the copies are linked clones, which boot.

    A copy lives on when the VM it came from is removed. Prints the names of the copies.
    """
    answer = app.instance(name).fork(
        count=count,
        name=pattern,
        cpus=cpus,
        ssh_keys=ssh_keys,
        start=not no_start,
        remove_when_ended=remove,
        wait="running" if no_wait else "ready",
        timeout_s=timeout_s,
    )
    if app.json:
        print_json(answer)
        return
    for copy in answer["instances"]:
        print(copy["name"])
        if copy["status"].get("note"):
            note(f"{copy['name']}: {copy['status']['note']}")
    if answer["pause_ms"]:
        note(f"{name} stood still for {answer['pause_ms']:.0f} ms")
