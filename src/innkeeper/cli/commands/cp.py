"""`inn cp`."""

from __future__ import annotations

import click

from innkeeper.cli import copying
from innkeeper.cli.app import App
from innkeeper.cli.command import verb
from innkeeper.cli.interrupts import orderly_signals
from innkeeper.cli.output import print_json
from innkeeper.cli.progress import busy
from innkeeper.errors import BadRequest


def split_side(text: str) -> tuple[str, str]:
    """(NAME, PATH) of `NAME:PATH`, or ("", PATH) of a path of ours: one that has a slash before the
    first colon, or no colon."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or not name:
        return "", text
    return name, path


@verb(
    "cp",
    synopsis="inn cp SRC... NAME:PATH [--json]\ninn cp NAME:PATH DST [--json]",
    examples="""
inn cp site.conf web:/etc/nginx/
inn cp -- ./a:b.txt web:/tmp/
inn cp web:/var/log ./web-logs
inn cp web:/etc/os-release - | grep VERSION
""",
    exit_status={1: "No guest agent answers, or copying failed.", 3: "No such VM or file."},
)
@click.argument("sources", metavar="SRC...", nargs=-1, required=True)
@click.argument("target", metavar="DST")
def cp(app: App, sources: tuple[str, ...], target: str) -> None:
    """Copy files into and out of a guest.

    NAME:PATH is a path in the guest, everything else one of ours (./a:b is ours, too), - standard
    input or output. As with cp -r: directories are copied whole, into the target if that is a
    directory that exists, and under the target's name if not. A copy to this host appears when it
    is complete.
    """
    guest, path = split_side(target)
    for source in sources:
        if bool(split_side(source)[0]) == bool(guest):
            raise BadRequest(
                "Exactly one side of cp is in a guest",
                hint="write that one NAME:PATH, such as inn cp file web:/tmp/",
            )
    if guest and not path:
        raise BadRequest(f"No path after {guest}:", hint=f"write {guest}:/PATH")
    with orderly_signals():
        for source in sources:
            with busy(f"copying {source}", after_s=1.0):
                if guest:
                    copying.upload(app.instance(guest), source, path)
                else:
                    name, inner = split_side(source)
                    copying.download(app.instance(name), inner or "/", target)
    if app.json:
        print_json({"sources": list(sources), "target": target})
