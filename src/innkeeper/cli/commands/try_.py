"""`inn try`."""

from __future__ import annotations

import shlex
from typing import IO, TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from innkeeper.cli.app import App, note
from innkeeper.cli.command import name_argument, tail_of, verb
from innkeeper.cli.interrupts import orderly_signals
from innkeeper.cli.output import clean, print_json, print_table
from innkeeper.cli.prefixed import Prefixed
from innkeeper.cli.specargs import pairs
from innkeeper.cli.types import timeout_option

if TYPE_CHECKING:
    from innkeeper.client.try_ import Trial, TryResult

DEFAULT_COUNT = 2


@verb(
    "try",
    synopsis="inn try NAME [-n N] [OPTIONS] -- CMD [ARG]...\ninn try NAME --each FILE [OPTIONS]",
    examples="""
inn try web -n 8 -- sh -c './flaky-test --seed $TRY_INDEX'
inn try web --each upgrades.txt --changes          one shell command per line, a copy for each
inn try db --env-each settings.txt --keep best --name db2 -- ./bench
inn try web -n 20 --keep failed --quiet -- make check
""",
    exit_status={
        0: "A command ended with 0 in at least one copy.",
        1: "No command ran to its end. Else, when none ended with 0: the lowest of their statuses.",
        4: "The VM cannot be forked now, or the name is taken.",
    },
    tail=True,
)
@name_argument
@click.option("-n", "--count", type=click.IntRange(1, 256), metavar="N", help="How many copies (default: 2).")
@click.option(
    "--each", type=click.File(), metavar="FILE", help="A shell command per line, one for each copy."
)
@click.option("--env-each", type=click.File(), metavar="FILE", help="Per line, KEY=VALUE... for one copy.")
@click.option("--env", multiple=True, metavar="KEY=VALUE", help="Set a variable for every command.")
@click.option(
    "--keep", type=click.Choice(["none", "best", "failed", "all"]), default="none",
    help="Which copies stay (default: none).",
)  # fmt: skip
@click.option(
    "--name", "winner", metavar="NAME", default="", help="With --keep best: what the best is called then."
)
@click.option("--changes", is_flag=True, help="List the files each command added, changed and removed.")
@click.option("--no-changes", is_flag=True, help="Do not look at files, which takes time before and after.")
@click.option(
    "-q", "--quiet", is_flag=True, help="Print no output of the commands, only what became of them."
)
@timeout_option("End each command after this time.")
def try_(app: App, name: str, **options: Any) -> None:
    """Run a command in several forks of a VM, and compare.

    Makes copies of a running VM at one moment, runs the command in each of them at the same time, and
    removes them again, also after ctrl-C. TRY_INDEX (from 0) and TRY_COUNT are in its environment. Output
    comes line by line behind the name of the copy; at the end there is a table of exit status, seconds,
    and how many files the command changed. The VM itself runs on unchanged.

    The best is the quickest of those that ended with 0; it keeps its name, or is forked once more to get
    the one given with --name. Files are those on disks, in the root file system and in /tmp, by what the
    guest says of each; other programs of the guest that write meanwhile count, too.

    With --json: an object with parent, exit_status, best, pause_ms, times_s and results: index, name,
    command, exit_status, seconds, stdout, stderr, error, changes (added, changed, removed, truncated; or
    null) and kept.
    """
    from innkeeper.client.try_ import Trial, attempts_of, exit_status

    commands, envs = _what(tail_of(click.get_current_context()), options["each"], options["env_each"])
    count = options["count"] or (DEFAULT_COUNT if len(commands) < 2 and len(envs) < 2 else None)
    attempts = attempts_of(commands, count, envs, pairs(options["env"], "variable"))
    shown = not (app.json or options["quiet"])
    prefixed = Prefixed()
    trial = Trial(
        app.client.transport,
        app.instance(name),
        attempts,
        keep=options["keep"],
        name=options["winner"],
        changes=not options["no_changes"],
        timeout_s=options["timeout_s"],
        on_output=prefixed.write if shown else None,
    )
    try:
        with orderly_signals():
            results = trial.run()
    finally:
        prefixed.end()
    if app.json:
        print_json(_answer(name, trial, results))
    else:
        _show(name, trial, results, listed=options["changes"])
    raise Exit(exit_status(results))


def _what(
    tail: list[str], each: IO[str] | None, env_each: IO[str] | None
) -> tuple[Any, list[dict[str, str]]]:
    """The command, or one for each copy, and the environment of each."""
    if bool(tail) == bool(each):
        raise click.UsageError("Give one command after --, or --each FILE")
    envs = [pairs(shlex.split(line), "variable") for line in _lines(env_each)]
    if env_each and not envs:
        raise click.UsageError("The file of --env-each has no line")
    if each:
        commands = [["sh", "-c", line] for line in _lines(each)]
        if not commands:
            raise click.UsageError("The file of --each has no line")
        return commands, envs
    return tail, envs


def _lines(file: IO[str] | None) -> list[str]:
    """Without those that are empty or begin with #."""
    lines = [line.strip() for line in file or ()]
    return [line for line in lines if line and not line.startswith("#")]


def _show(name: str, trial: Trial, results: list[TryResult], *, listed: bool) -> None:
    from innkeeper.client.try_ import best_of

    titles = ["COPY", "STATUS", "SECONDS", "FILES", *(["KEPT"] if trial.keep != "none" else [])]
    rows = [(one.name, _status(one), f"{one.seconds:.2f}", _count(one), _kept(one)) for one in results]
    print_table(titles, [row[: len(titles)] for row in rows])
    if listed:
        for one in results:
            _list_changes(one)
    for one in results:
        if one.error or one.note:
            note(f"{one.name}: {one.error or one.note}")
    if trial.keep == "best" and best_of(results) is None:
        note("none ended with 0: none is kept")
    note(f"{name} stood still for {trial.pause_ms:.0f} ms")


def _status(result: TryResult) -> str:
    return "none" if result.status is None else str(result.status)


def _count(result: TryResult) -> str:
    changes = result.changes
    return "" if changes is None else f"{changes.count}{'+' if changes.truncated else ''}"


def _kept(result: TryResult) -> str:
    return "yes" if result.kept else ""


def _list_changes(result: TryResult) -> None:
    changes = result.changes
    if changes is None:
        return
    for mark, paths in (("+", changes.added), ("~", changes.changed), ("-", changes.removed)):
        for path in paths:
            print(f"{result.name} {mark} {clean(path)}")
    if changes.truncated:
        note(f"{result.name}: too many files to list all, and those removed")


def _answer(name: str, trial: Trial, results: list[TryResult]) -> dict[str, Any]:
    from innkeeper.client.try_ import best_of, exit_status

    best = best_of(results)
    return {
        "parent": name,
        "exit_status": exit_status(results),
        "best": best.name if best else None,
        "pause_ms": trial.pause_ms,
        "times_s": trial.times_s,
        "results": [_result(one) for one in results],
    }


def _result(one: TryResult) -> dict[str, Any]:
    changes = one.changes
    return {
        "index": one.index,
        "name": one.name,
        "command": list(one.argv),
        "exit_status": one.status,
        "seconds": one.seconds,
        "stdout": one.stdout.decode(errors="replace"),
        "stderr": one.stderr.decode(errors="replace"),
        "error": one.error,
        "changes": changes
        and {
            "added": list(changes.added),
            "changed": list(changes.changed),
            "removed": list(changes.removed),
            "truncated": changes.truncated,
        },
        "note": one.note,
        "kept": one.kept,
    }
