"""`inn diff`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from click.exceptions import Exit

from innkeeper.cli.app import App
from innkeeper.cli.command import verb
from innkeeper.cli.output import clean, print_json
from innkeeper.cli.specfile import load
from innkeeper.cli.specyaml import full
from innkeeper.errors import NotFound


@verb(
    "diff",
    synopsis="inn diff -f FILE... [--exit-code] [--json]",
    examples="""
inn diff -f web.yaml
inn diff -f web.yaml --exit-code || inn apply -f web.yaml
""",
    exit_status={0: "Done.", 1: "It failed; with --exit-code: there are differences."},
)
@click.option(
    "-f", "--file", "files", metavar="FILE", multiple=True, required=True, help="YAML file (-: input)."
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 when there are differences.")
def diff(app: App, files: tuple[str, ...], exit_code: bool) -> None:
    """Show what apply would change.

    One line per field: NAME: FIELD: OLD -> NEW. Nothing is changed.

    With --json: an array of objects with name, exists and changes (field, old, new).
    """
    documents = [document for file in files for document in load(file)]
    for document in documents:
        document.check()
    answers = []
    for document in documents:
        new = full(document.spec)
        try:
            old = full(app.client.instances.get_data(document.name)["spec"])
        except NotFound:
            answers.append({"name": document.name, "exists": False, "changes": []})
            continue
        changes = [{"field": field, "old": a, "new": b} for field, a, b in differences(old, new)]
        answers.append({"name": document.name, "exists": True, "changes": changes})
    if app.json:
        print_json(answers)
    else:
        _print(answers)
    if exit_code and any(answer["changes"] or not answer["exists"] for answer in answers):
        raise Exit(1)


def _print(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        if not answer["exists"]:
            print(f"{answer['name']}: would be created")
        for change in answer["changes"]:
            old, new = clean(_shown(change["old"])), clean(_shown(change["new"]))
            print(f"{answer['name']}: {change['field']}: {old} -> {new}")


def _shown(value: Any) -> str:
    return "none" if value in (None, "", [], {}) else str(value)


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(field, old, new) of what differs between two whole specs."""
    if path == "machine.type" and _pinned_from(str(old), str(new)):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{path}.{number}")
    elif old != new:
        yield path, old, new


def _pinned_from(old: str, new: str) -> bool:
    """A version was pinned at creation; asking for the same type again means that one."""
    stem = {"q35": "pc-q35-", "pc": "pc-i440fx-"}.get(new)
    return stem is not None and old.startswith(stem)
