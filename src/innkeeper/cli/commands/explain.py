"""`inn explain`."""

from __future__ import annotations

from typing import Any

import click
from click.exceptions import Exit

from innkeeper.cli.app import App
from innkeeper.cli.command import name_argument, verb
from innkeeper.cli.output import clean, print_json

VERBS = ("fork", "clone", "start", "stop", "rm")
REFUSED = 4


@verb(
    "explain",
    synopsis="inn explain VERB NAME [--count N] [--cpus N] [--json]",
    examples="""
inn explain fork web                  what would block a fork, and what would follow from it
inn explain fork web --count 100      is there memory for a hundred?
inn explain start web
""",
    exit_status={0: "The verb would be carried out.", 4: "It would be refused; what blocks it is shown."},
)
@click.argument("asked", metavar="VERB", type=click.Choice(VERBS))
@name_argument
@click.option(
    "--count", type=click.IntRange(1, 1000), metavar="N", default=1, help="Of fork: how many copies."
)
@click.option("--cpus", type=click.IntRange(1, 255), metavar="N", help="Of fork: vCPUs of each copy.")
def explain(app: App, asked: str, name: str, count: int, cpus: int | None) -> None:
    """Say what would block a verb, without doing it.

    VERB is fork, clone, start, stop or rm. Prints a line for everything that was looked at: ok, warn for what
    follows and may not be expected, block for what makes it impossible; and how to mend it. These are
    the checks of the verb itself.

    With --json: an object with verb, name, allowed, and findings (verdict, what, fix).
    """
    answer: dict[str, Any] = {"name": name, **app.instance(name).explain(asked, count=count, cpus=cpus)}
    if app.json:
        print_json(answer)
    else:
        for one in answer["findings"]:
            print(f"{one['verdict']:<5}  {clean(one['what'])}")
            if one["fix"]:
                print(f"       {clean(one['fix'])}")
    raise Exit(0 if answer["allowed"] else REFUSED)
