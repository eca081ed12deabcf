"""`inn logs`."""

from __future__ import annotations

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import name_argument, verb
from innkeeper.cli.output import print_json, write_bytes

# To find the last N lines: no line of a console is longer than this on average.
_BYTES_PER_LINE = 1024


@verb(
    "logs",
    synopsis="inn logs NAME [-n LINES] [-f] [--source console|qemu] [--json]",
    examples="""
inn logs web
inn logs -f web
inn logs -n 20 --source qemu web
""",
)
@name_argument
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="LINES", help="Only the last lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what comes, until ctrl-C.")
@click.option(
    "--source",
    type=click.Choice(["console", "qemu"]),
    default="console",
    help="The guest's serial console (the default), or what QEMU itself said.",
)
def logs(app: App, name: str, tail: int | None, follow: bool, source: str) -> None:
    """Print the serial output of a VM.

    It is kept over restarts, until the VM is removed. The bytes are the guest's own, and are not
    changed: on a terminal they may move the cursor and set colours.
    """
    if follow and app.json:
        raise click.UsageError("--follow and --json exclude each other")
    instance = app.instance(name)
    parts = instance.logs(source, tail_bytes=_tail_bytes(tail), follow=follow)
    if app.json:
        text = _last_lines(b"".join(parts), tail)
        print_json({"name": name, "source": source, "text": text.decode(errors="replace")})
    elif follow:
        # What is there already comes first, in one piece; asking twice would lose what comes between.
        write_bytes(_last_lines(next(parts, b""), tail))
        for part in parts:
            write_bytes(part)
    elif tail is None:
        for part in parts:
            write_bytes(part)
    else:
        write_bytes(_last_lines(b"".join(parts), tail))


def _tail_bytes(tail: int | None) -> int | None:
    return None if tail is None else tail * _BYTES_PER_LINE


def _last_lines(text: bytes, count: int | None) -> bytes:
    if count is None:
        return text
    lines = text.splitlines(keepends=True)
    return b"".join(lines[-count:]) if count else b""
