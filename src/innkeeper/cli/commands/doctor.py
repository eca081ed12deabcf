"""`inn doctor`."""

from __future__ import annotations

import sys
from typing import Any

import click
from click.exceptions import Exit

from innkeeper.cli.app import App
from innkeeper.cli.command import verb
from innkeeper.cli.output import clean, print_json
from innkeeper.errors import DaemonUnreachable

_BAD = ("fail",)
_COLOURS = {"ok": "32", "info": "36", "warn": "33", "fail": "31"}


@verb(
    "doctor",
    synopsis="inn doctor [--fix] [--json]",
    examples="""
inn doctor
inn doctor --fix
inn doctor --json | jq -r '.[] | select(.verdict != "ok") | .repair'
""",
    exit_status={1: "A check failed: something needed does not work here."},
)
@click.option("--fix", is_flag=True, help="Apply the repairs that can be applied, then test again.")
def doctor(app: App, fix: bool) -> None:
    """Test this host, and repair what can be.

    Tests rather than looks: a small guest runs on /dev/kvm, for example, since the device may be
    there and not work. Each finding has a verdict: ok; info, nothing is missing for ordinary use;
    warn, it works, but less well; fail, something needed does not work. Where something can be
    done, the repair follows.

    With --json: an array of objects with name, verdict, detail, repair and fixable.
    """
    try:
        findings = app.client.host.fix() if fix else app.client.host.doctor()
    except DaemonUnreachable as error:
        # Exactly when nothing works somebody calls the doctor.
        findings = [
            {
                "name": "daemon",
                "verdict": "fail",
                "detail": error.message,
                "repair": error.hint,
                "fixable": False,
            }
        ]
    if app.json:
        print_json(findings)
    else:
        _print(findings)
    if any(item["verdict"] in _BAD for item in findings):
        raise Exit(1)


def _print(findings: list[dict[str, Any]]) -> None:
    width = max((len(clean(item["name"])) for item in findings), default=0)
    colour = sys.stdout.isatty()
    for item in findings:
        verdict = clean(item["verdict"])
        shown = f"{verdict:<4}"
        if colour:
            shown = f"\033[{_COLOURS.get(verdict, '0')}m{shown}\033[0m"
        print(f"{shown}  {clean(item['name']):<{width}}  {clean(item['detail'])}")
        if item.get("repair") and verdict != "ok":
            fixable = " (inn doctor --fix does it)" if item.get("fixable") else ""
            print(f"{'':4}  {'':{width}}  -> {clean(item['repair'])}{fixable}")
