"""`inn apply`."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli.app import App, note
from innkeeper.cli.command import verb
from innkeeper.cli.output import print_json
from innkeeper.cli.specfile import Document, load
from innkeeper.errors import InnkeeperError


@verb(
    "apply",
    synopsis="inn apply -f FILE... [--json]",
    examples="""
inn apply -f web.yaml
inn show web --yaml | sed 's/count: 1/count: 2/' | inn apply -f -

A file:
  kind: instance
  name: web
  spec:
    image: debian
    cpu: {count: 2}
    memory: {size: 1GiB}
    networks:
      - forward:
          - {host: 8080, guest: 80}
""",
    exit_status={2: "An error in the file: FILE:LINE: field: reason; nothing was applied."},
)
@click.option(
    "-f", "--file", "files", metavar="FILE", multiple=True, required=True, help="YAML file (-: input)."
)
def apply(app: App, files: tuple[str, ...]) -> None:
    """Create or change VMs from a file.

    Makes each VM as its document says: one that is not there is created (not started), one that is
    there is changed, live where possible, and what needs a restart is said. A file may have several
    documents, separated by ---. Every file is checked as a whole before anything is applied.

    With --json: an array of objects with name, created, changed and needs_restart (lists of
    fields), and instance.
    """
    documents = [document for file in files for document in load(file)]
    for document in documents:
        document.check()
    if len(documents) > 1:
        # What the daemon would refuse of the last must be known before the first is changed.
        for document in documents:
            _apply(app, document, dry_run=True)
    answers = [apply_one(app, document) for document in documents]
    if app.json:
        print_json(answers)


def apply_one(app: App, document: Document, *, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Apply one document and say what it did; an error names the line. With `before` refused where it is
    not so any more."""
    answer = _apply(app, document, before=before)
    changed = answer.get("changed") or []
    if not app.json:
        done = "created" if answer.get("created") else f"changed {', '.join(changed)}" if changed else ""
        print(f"{document.name}: {done or 'unchanged'}")
        say_restart(document.name, answer)
    return {"name": document.name, **answer}


def _apply(
    app: App, document: Document, *, dry_run: bool = False, before: dict[str, Any] | None = None
) -> dict[str, Any]:
    try:
        return app.client.instances.apply(document.name, document.spec, dry_run=dry_run, before=before)
    except InnkeeperError as error:
        raise document.placed(error) from None


def say_restart(name: str, answer: dict[str, Any]) -> None:
    """What of a change does not show yet, and what to do about it."""
    reasons: dict[str, str] = answer.get("reasons") or {}
    if late := answer.get("needs_restart"):
        why = f" ({'; '.join(dict.fromkeys(reasons.values()))})" if reasons else ""
        note(f"{name} takes up {', '.join(late)} at its next start{why}: inn restart {name}")
    if paused := answer.get("needs_resume"):
        note(f"{name} takes up {', '.join(paused)} when it runs on: inn resume {name}")
