"""`inn run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from innkeeper.cli.app import App, note
from innkeeper.cli.command import complete_instances, tail_of, verb
from innkeeper.cli.interrupts import orderly_signals
from innkeeper.cli.output import print_json
from innkeeper.cli.types import timeout_option
from innkeeper.cli.vmoptions import vm_options
from innkeeper.errors import InnkeeperError, NotFound

if TYPE_CHECKING:
    from innkeeper.cli.creation import Creation
    from innkeeper.client.instance import Instance


@verb(
    "run",
    synopsis="inn run IMAGE|PATH [OPTIONS] [-d] [--rm]\ninn run IMAGE|PATH [OPTIONS] -- CMD [ARG]...\n"
    "inn run --from TEMPLATE [--name NAME] [--forward ...] [-d] [--rm] [-- CMD [ARG]...]",
    examples="""
inn run tiny                                     a VM, and its console
inn run tiny -- uname -a                         one command in a VM that is gone afterwards
inn run -d debian --name web --forward 8080:80   in the background
inn run ./disk.qcow2 --memory 2GiB --vnc 127.0.0.1:5900
inn run ./installer.iso --disk 20GiB --boot cdrom,disk
inn run --kernel ./vmlinuz --initrd ./initrd.img --append "console=ttyS0 quiet"
inn run --from web -- make test                  in a copy of the template web; see inn template
tar -c . | inn run tiny -- tar -t                input and output go through
""",
    exit_status={
        0: "Done; with CMD, its own exit status.",
        1: "The VM did not start or become ready (then it is removed again), or no agent answers.",
        3: "No such image or file.",
        4: "The name is taken, or there is no capacity.",
    },
    tail=True,
)
@vm_options
@click.option(
    "--from", "template", metavar="TEMPLATE", shell_complete=complete_instances,
    help="Start from this template (inn template) instead of booting.",
)  # fmt: skip
@click.option("--cold", is_flag=True, help="Boot it, though a template of the image would fit.")
@click.option("-d", "--detach", is_flag=True, help="Do not attach: wait until ready, and print the name.")
@click.option("--rm", "remove", is_flag=True, help="Remove the VM when it ends (with CMD: after CMD).")
@click.option("--keep", is_flag=True, help="With CMD: do not remove the VM afterwards.")
@click.option("--no-wait", is_flag=True, help="Return when it runs, without waiting for the guest.")
@click.option("-i", "--interactive", is_flag=True, help="With CMD: stream input, even from a terminal.")
@timeout_option("Give up, and remove the VM, when it is not ready after this time (default: 5m).")
def run(app: App, **options: Any) -> None:
    """Create and start a VM, and attach or run a command in it.

    IMAGE is one of inn image list. A PATH (it has a slash, or is a file here) is a disk image, which
    is copied, or an ISO, which is put into a CD-ROM drive. With --kernel, neither is needed.

    On a terminal, the console is attached (ctrl-] leaves it, and the VM runs on). Elsewhere, and
    with -d, it waits until the guest is up and prints the name of the VM.

    Where the image has a template (inn template) with the same settings, the VM starts from that, in a
    fraction of a second; a line on stderr says so. With --cold it boots.

    With CMD, the command is run in the guest as soon as that is up; output and exit status are the
    command's. Such a VM is removed afterwards, unless it was given a --name, -d or --keep.

    With --json: the VM as inn show prints it; with CMD an object with name, exit_status, stdout,
    stderr and removed.
    """
    from innkeeper.cli.creation import Creation
    from innkeeper.cli.terminal import at_terminal

    ctx = click.get_current_context()
    argv = tail_of(ctx)
    _check(ctx, options, argv)
    creation = Creation(app, options)
    with orderly_signals():
        if argv:
            raise Exit(_run_command(app, creation, argv, options))
        attached = not options["detach"] and not app.json and at_terminal()
        early = attached or options["no_wait"]
        instance = creation.create(
            start=True,
            wait="running" if early else "ready",
            timeout_s=options["timeout_s"],
            remove_when_ended=options["remove"],
            cold=options["cold"],
        )
    _tell_template(instance, options)
    if app.json:
        print_json(instance.data)
    elif attached:
        _attach(app, instance.name)
    else:
        print(instance.name)


def _check(ctx: click.Context, options: dict[str, Any], argv: list[str]) -> None:
    if ctx.meta.get("innkeeper.tail_given") and not argv:
        raise click.UsageError("No command after --")
    if options["remove"] and options["keep"]:
        raise click.UsageError("--rm and --keep exclude each other")
    if argv and options["no_wait"]:
        raise click.UsageError("A command has to wait for the guest: leave out --no-wait")


def _run_command(app: App, creation: Creation, argv: list[str], options: dict[str, Any]) -> int:
    from innkeeper.cli import guestexec

    kept = options["name"] is not None or options["detach"] or options["keep"]
    removed = options["remove"] or not kept
    if "image" not in creation.spec:
        # Of an image we know whether it has an agent; here, the command needs one.
        creation.spec.setdefault("wait_for_agent", True)
    instance = creation.create(
        start=True,
        wait="ready",
        timeout_s=options["timeout_s"],
        remove_when_ended=removed,
        cold=options["cold"],
    )
    _tell_template(instance, options)
    try:
        status, answer = guestexec.run(app, instance.name, argv, interactive=options["interactive"])
    finally:
        if removed:
            _remove(app, instance.name)
    if app.json:
        print_json(answer | {"removed": removed})
    return status


def _tell_template(instance: Instance, options: dict[str, Any]) -> None:
    """That it did not boot, where nobody asked for that."""
    fork = instance.data.get("fork")
    if fork and fork["template"] and not options["template"]:
        note(f"{instance.name} runs on from the template {fork['parent']}; --cold boots it")


def _remove(app: App, name: str) -> None:
    """Gone afterwards; that it is gone already (the command shut it down) is as good."""
    try:
        app.quiet_client().instances.handle(name).remove(force=True)
    except NotFound:
        pass
    except InnkeeperError as error:
        note(f"{name} is left behind: {error}")


def _attach(app: App, name: str) -> None:
    from innkeeper.cli.terminal import attach

    if attach(app, name):
        note(f"detached from {name}, which runs on; inn console {name} attaches again")
    else:
        note(f"the console of {name} ended")
