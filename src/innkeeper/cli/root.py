"""The `inn` command as click sees it: the table of verbs and the global options."""

from __future__ import annotations

from typing import ClassVar

import click
from click.exceptions import Exit

from innkeeper.cli.app import App
from innkeeper.cli.command import CONTEXT, LazyGroup, Table


class Root(LazyGroup):
    table: ClassVar[Table] = {
        "run": ("run", "Create and start a VM, and attach or run a command in it."),
        "create": ("create", "Create a VM without starting it."),
        "start": ("start", "Start VMs."),
        "stop": ("stop", "Ask VMs to shut down, and wait."),
        "restart": ("restart", "Stop and start VMs."),
        "pause": ("pause", "Halt the vCPUs of VMs."),
        "resume": ("resume", "Let paused VMs run on."),
        "fork": ("fork", "Make copies of a VM as it is now."),
        "template": ("template", "Freeze a VM, for others to start from."),
        "clone": ("clone", "Make an independent copy of a VM."),
        "try": ("try_", "Run a command in several forks of a VM, and compare."),
        "explain": ("explain", "Say what would block a verb, without doing it."),
        "snapshot": ("snapshot", "Keep moments of a VM, and go back to them."),
        "save": ("save", "Stop a VM with its whole state kept on disk."),
        "restore": ("restore", "Let a saved VM run on."),
        "kill": ("kill", "End VMs at once."),
        "rm": ("rm", "Remove VMs and their disks."),
        "list": ("list", "List VMs."),
        "show": ("show", "Show all about one VM."),
        "inspect": ("inspect", "Look into a running VM, without halting it."),
        "wait": ("wait", "Wait until a VM is ready, running or stopped."),
        "logs": ("logs", "Print the serial output of a VM."),
        "console": ("console", "Attach to the serial console."),
        "exec": ("exec", "Run a command in a guest."),
        "cp": ("cp", "Copy files into and out of a guest."),
        "screenshot": ("screenshot", "Save what the screen shows as PNG."),
        "apply": ("apply", "Create or change VMs from a file."),
        "diff": ("diff", "Show what apply would change."),
        "edit": ("edit", "Change a VM in your editor."),
        "set": ("set", "Change single fields of a VM."),
        "image": ("image", "Build, import, list and remove images."),
        "cpu": ("cpu", "Show what CPUs this host can give a VM."),
        "host": ("host", "Show what this host has."),
        "top": ("top", "Show what VMs and the host use."),
        "advise": ("advise", "Say what would pay, by what VMs did; apply it."),
        "doctor": ("doctor", "Test this host, and repair what can be."),
        "serve": ("serve", "Run the daemon, or stop the one in the background."),
        "completion": ("completion", "Print the completion script for a shell."),
        "version": ("version", "Print versions."),
    }
    examples = """
inn run tiny                    a VM, and its console
inn run tiny -- uname -a        one command in a VM of its own
inn list                        what there is
inn run --help                  all about one command
"""


@click.group("inn", cls=Root, context_settings=CONTEXT, invoke_without_command=True)
@click.option(
    "--state",
    metavar="DIR",
    help="Use the daemon with this state directory (default: $INNKEEPER_STATE, or the user's own).",
)
@click.option("--version", is_flag=True, help="Print the version and exit.")
@click.pass_context
def cli(ctx: click.Context, state: str | None, version: bool) -> None:
    """Virtual machines on QEMU/KVM.

    The daemon is started in the background when none answers. Every command prints JSON with
    --json, and exits with one of the statuses below.
    """
    if version:
        # Imported here: it reads the package's metadata, which takes as long as all else together.
        from innkeeper.version import version as ours

        print(f"inn {ours()}")
        raise Exit(0)
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise Exit(0)
    app = ctx.ensure_object(App)
    if state is not None:
        app.state = state


def run(args: list[str], app: App, interrupted: int) -> int:
    """Parse and carry out one command line; its exit status."""
    try:
        with cli.make_context("inn", args, obj=app) as ctx:
            cli.invoke(ctx)
    except Exit as exit_:
        return exit_.exit_code
    except click.Abort:
        return interrupted
    return 0
