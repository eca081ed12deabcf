"""`inn cpu models`."""

from __future__ import annotations

from typing import Any, ClassVar

import click

from innkeeper.cli.app import App, note
from innkeeper.cli.command import CONTEXT, LazyGroup, Table, verb
from innkeeper.cli.output import print_json, print_pairs, print_table

Json = dict[str, Any]
_FLAGS_SHOWN = 4


class CpuGroup(LazyGroup):
    table: ClassVar[Table] = {"models": ("cpu", "List CPU models, and what each lacks here.")}
    examples = """
inn cpu models
inn cpu models x86-64-v3
"""


@click.group("cpu", cls=CpuGroup, context_settings=CONTEXT)
def cpu() -> None:
    """Show what CPUs this host can give a VM."""


@verb(
    "models",
    synopsis="inn cpu models [MODEL] [--accel kvm|tcg] [--all] [--json]",
    examples="""
inn cpu models
inn cpu models --accel tcg --all
inn cpu models Skylake-Server
inn cpu models --json | jq -r '.models[] | select(.runnable).name'
""",
    exit_status={4: "QEMU has no model of that name, or there is no KVM to ask."},
)
@click.argument("model", metavar="[MODEL]", required=False)
@click.option(
    "--accel",
    type=click.Choice(["kvm", "tcg"]),
    help="Under this accelerator (default: what auto means here).",
)
@click.option("--all", "everything", is_flag=True, help="Those that cannot run here, and old versions, too.")
def models(app: App, model: str | None, accel: str | None, everything: bool) -> None:
    """List the CPU models of this QEMU on this host, or show one with all its flags.

    A model runs if each of its flags can be given here; what is missing is named. x86-64-v1 to v4
    are the levels of the x86-64 psABI, the same on every host; max has everything that can be
    given, host (with KVM) is the host's own. Use one with --cpu-model or cpu.model, and add or
    leave out single flags with --cpu-feature or cpu.features.

    With --json: accelerator, qemu, host_cpu, usable, flags (all that can be given), and models
    with name, flags, missing, runnable, alias_of, deprecated and description.
    """
    answer = app.client.host.cpu_models(accel, model)
    if app.json:
        print_json(answer)
        return
    if answer.get("note"):
        note(answer["note"])
    if model is not None:
        _print_one(answer["models"][0])
        return
    shown = [one for one in answer["models"] if everything or (one["runnable"] and not _old(one))]
    hidden = len(answer["models"]) - len(shown)
    print_table(("MODEL", "RUNS", "FLAGS", "MISSING", "ABOUT"), [_row(one) for one in shown])
    where = "KVM" if answer["accelerator"] == "kvm" else "TCG"
    more = f"; {hidden} more do not run here, or are versions of one name: --all" if hidden else ""
    note(f"QEMU {answer['qemu']} under {where} on {answer['host_cpu'] or 'this host'}{more}")


def _old(model: Json) -> bool:
    """One of several versions of a name (QEMU: NAME-vN), or to go."""
    versioned = model["name"].rpartition("-v")[2].isdigit() and not model["name"].startswith("x86-64-")
    return bool(versioned or model["deprecated"])


def _row(model: Json) -> tuple[object, ...]:
    missing = model["missing"]
    some = ", ".join(missing[:_FLAGS_SHOWN])
    more = f" and {len(missing) - _FLAGS_SHOWN} more" if len(missing) > _FLAGS_SHOWN else ""
    about = model["description"] or (f"as {model['alias_of']}" if model["alias_of"] else "")
    return model["name"], "yes" if model["runnable"] else "no", len(model["flags"]), some + more, about


def _print_one(model: Json) -> None:
    print_pairs(
        [
            ("name", model["name"]),
            ("about", model["description"]),
            ("alias of", model["alias_of"]),
            ("runs here", "yes" if model["runnable"] else "no"),
            ("missing", ", ".join(model["missing"])),
            ("flags", ", ".join(model["flags"])),
            ("deprecated", "yes" if model["deprecated"] else ""),
        ]
    )
