"""Verbs that take several names: each is tried, each failure is told, the first one sets the status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from innkeeper.cli.app import App
from innkeeper.cli.output import print_json
from innkeeper.errors import InnkeeperError


def each(app: App, names: Sequence[str], act: Callable[[str], dict[str, Any]]) -> None:
    """As `try_each`, in a command of click's."""
    status = try_each(app, names, act)
    if status != 0:
        from click.exceptions import Exit

        raise Exit(status)


def try_each(app: App, names: Sequence[str], act: Callable[[str], dict[str, Any]]) -> int:
    """Call `act` for each name; the exit status of the first that failed, or 0. Prints the names done,
    or with --json what `act` answered: an object for one name, an array for several (a failure is an
    object with `name` and `error`)."""
    answers: list[dict[str, Any]] = []
    first: InnkeeperError | None = None
    for name in dict.fromkeys(names):
        try:
            answer = act(name)
        except InnkeeperError as error:
            if len(names) == 1:
                raise
            print(f"inn: {error}", file=sys.stderr)
            first = first or error
            answers.append({"name": name, "error": error.to_dict()})
            continue
        answers.append(answer)
        if not app.json:
            print(name, flush=True)
    if app.json:
        print_json(answers[0] if len(names) == 1 else answers)
    return first.exit_code if first is not None else 0
