"""`inn edit`."""

from __future__ import annotations

import os
import tempfile

import click

from innkeeper.cli.app import App, note
from innkeeper.cli.command import name_argument, verb
from innkeeper.cli.commands.apply import apply_one
from innkeeper.cli.output import print_json
from innkeeper.cli.specfile import Document, parse
from innkeeper.cli.specyaml import to_yaml
from innkeeper.errors import InnkeeperError, SpecError

_ERROR_LINE = "# Error: "


@verb(
    "edit",
    synopsis="inn edit NAME [--json]",
    examples="""
inn edit web
EDITOR=nano inn edit web
""",
    exit_status={2: "What was saved has an error, and was saved the same way again."},
)
@name_argument
def edit(app: App, name: str) -> None:
    """Change a VM in your editor.

    Opens $VISUAL or $EDITOR with what inn show --yaml prints, and applies what you save, as inn apply
    does. If there is an error in it, or somebody else changed the VM meanwhile, the editor opens again,
    with that on top; leave an error unchanged to give up. Nothing is changed if you save nothing.
    """
    data = app.client.instances.get_data(name)
    first = to_yaml(data["name"], data["spec"])
    text, before = first, data["spec"]
    with tempfile.TemporaryDirectory(prefix="inn-edit-") as directory:
        path = os.path.join(directory, f"{name}.yaml")
        while True:
            edited = _without_error(_edited(path, text))
            if edited == first:
                note(f"{name} is unchanged")
                if app.json:
                    print_json({"name": name, "changed": [], "needs_restart": []})
                return
            try:
                answer = apply_one(app, _document(edited, name), before=before)
            except InnkeeperError as error:
                if error.details.get("stale"):  # who saves it again has been told
                    before = app.client.instances.get_data(name)["spec"]
                if edited == _without_error(text) or not os.isatty(0):
                    raise
                text = f"{_ERROR_LINE}{error}\n{edited}"
                continue
            if app.json:
                print_json(answer)
            return


def _edited(path: str, text: str) -> str:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    # click knows $VISUAL, $EDITOR and what editors there are; it raises ClickException when one fails.
    click.edit(filename=path)
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _without_error(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(_ERROR_LINE))


def _document(text: str, name: str) -> Document:
    documents = parse(text.encode(), f"{name}.yaml")
    if len(documents) != 1 or documents[0].name != name:
        raise SpecError(f"The file no longer describes {name}", hint="a VM cannot be renamed")
    documents[0].check()
    return documents[0]
