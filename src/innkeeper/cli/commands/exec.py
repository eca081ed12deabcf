"""`inn exec`."""

from __future__ import annotations

import click
from click.exceptions import Exit

from innkeeper.cli import guestexec
from innkeeper.cli.app import App
from innkeeper.cli.command import InnCommand, complete_instances, tail_of, verb
from innkeeper.cli.interrupts import orderly_signals
from innkeeper.cli.output import print_json
from innkeeper.cli.specargs import pairs
from innkeeper.cli.types import timeout_option
from innkeeper.errors import BadRequest


@verb(
    "exec",
    synopsis="inn exec NAME [-i] [--env KEY=VALUE]... [--timeout TIME] [--json] -- CMD [ARG]...",
    examples="""
inn exec web -- uname -a
inn exec web -- sh -c 'df -h | tail -1'
inn exec web -- tar -C /etc -cf - . > etc.tar
inn exec db --timeout 10m --env PGUSER=admin -- psql < dump.sql
""",
    exit_status={
        0: "The command's own exit status; without a command that ran, one of these:",
        1: "No guest agent answers, or the command did not end in time.",
        4: "The VM does not run.",
    },
    tail=True,
)
@click.argument("name", metavar="NAME", shell_complete=complete_instances)
@click.argument("words", metavar="[CMD...]", nargs=-1, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Stream input, even from a terminal.")
@click.option("--env", multiple=True, metavar="KEY=VALUE", help="Set a variable for the command.")
@timeout_option("End the command after this time.")
def exec_(
    app: App,
    name: str,
    words: tuple[str, ...],
    interactive: bool,
    env: tuple[str, ...],
    timeout_s: float | None,
) -> None:
    """Run a command in a guest.

    Works through the guest agent, without any network. Output and exit status are the command's,
    and input is streamed to it unless it comes from a terminal (then with -i). The command is run
    as it is, without a shell; for pipes and variables, run sh -c. It has no terminal of its own:
    for that, use inn console or ssh.

    With --json: an object with name, exit_status, stdout and stderr.
    """
    tail = tail_of(click.get_current_context())
    argv = [*words, *tail]
    if not argv:
        raise BadRequest("No command given", hint=f"write it after --, such as inn exec {name} -- uname -a")
    with orderly_signals():
        status, answer = guestexec.run(
            app, name, argv, interactive=interactive, env=pairs(env, "variable"), timeout_s=timeout_s
        )
    if app.json:
        print_json(answer)
    raise Exit(status)


# `inn exec web uname -a` works, too: without --, everything after the name belongs to the command.
assert isinstance(exec_, InnCommand)
exec_.own_options_first = True
