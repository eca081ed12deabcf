"""`inn inspect`: what a running VM is like inside."""

from __future__ import annotations

from typing import ClassVar

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import CONTEXT, LazyGroup, Table, name_argument, verb
from innkeeper.cli.output import print_json


class InspectGroup(LazyGroup):
    table: ClassVar[Table] = {
        "memory": ("inspect", "Map a VM's memory, or follow one address to the host's."),
        "cpu": ("inspect", "Show what each vCPU is doing."),
        "disk": ("inspect", "Show the images, counters and limits of a VM's disks."),
        "net": ("inspect", "Show a VM's network cards, from both sides."),
    }
    examples = """
inn inspect memory web
inn inspect memory web rip
inn inspect cpu web
"""


@click.group("inspect", cls=InspectGroup, context_settings=CONTEXT)
def inspect() -> None:
    """Look into a running VM, without halting it.

    A paused VM can be looked into as well. One whose QEMU hangs answers nothing within 3 seconds, which
    is then said.
    """


@verb(
    "memory",
    synopsis="inn inspect memory NAME [ADDRESS] [--physical] [--cpu N] [--numa] [--json]",
    examples="""
inn inspect memory web
inn inspect memory web --numa
inn inspect memory web 0xffffffff81000000
inn inspect memory web rip --cpu 1
inn inspect memory web rsp+0x10
inn inspect memory web 0x100000 --physical
""",
    exit_status={3: "There is no such VM or vCPU.", 4: "It does not run, or is no x86 (with an ADDRESS)."},
)
@name_argument
@click.argument("address", metavar="[ADDRESS]", required=False)
@click.option("--physical", is_flag=True, help="ADDRESS is guest-physical; without it, guest-virtual.")
@click.option(
    "--cpu", type=click.IntRange(0), metavar="N", help="Walk the page tables of this vCPU (default: 0)."
)
@click.option("--numa", is_flag=True, help="Without ADDRESS: also the host's NUMA node of each page.")
def memory(app: App, name: str, address: str | None, physical: bool, cpu: int | None, numa: bool) -> None:
    """Map a VM's memory, or follow one address to the host's.

    Without ADDRESS: where its memory lies, and for each page whether it is its own, shared with forks, a
    private copy, merged by KSM, swapped, or was never touched. With --json every run of pages.

    With ADDRESS, hexadecimal or a register such as rip, rsp+0x10 or cr2: each step of the walk of the
    guest's own page tables, the memory slot, the host-virtual and the host-physical address, and the entry
    that a shadow page table or EPT/NPT would hold for it. An address that is not mapped is an answer, too:
    the walk says at which level it ended.
    """
    if address is None and (physical or cpu is not None):
        raise click.UsageError("--physical and --cpu are of an ADDRESS, and none is given")
    if address is not None and numa:
        raise click.UsageError("--numa is of the whole map; with an ADDRESS the node is always shown")
    answer = app.instance(name).inspect_memory(address, physical=physical, cpu=cpu or 0, numa=numa)
    if app.json:
        print_json(answer)
        return
    from innkeeper.cli import inspected

    (inspected.show_map if address is None else inspected.show_address)(answer)


@verb(
    "cpu",
    synopsis="inn inspect cpu NAME [--json]",
    examples="""
inn inspect cpu web
inn inspect cpu web --json | jq '.cpus[].registers'
""",
    exit_status={4: "It does not run, or is no x86."},
)
@name_argument
def cpu(app: App, name: str) -> None:
    """Show what each vCPU is doing.

    Its mode and ring, the next instructions, control registers with the names of their bits, the thread
    with its CPU time and how long it waited for a CPU of the host, and KVM's counters of exits.
    """
    answer = app.instance(name).inspect_cpu()
    if app.json:
        print_json(answer)
        return
    from innkeeper.cli import inspected

    inspected.show_cpus(answer)


@verb(
    "disk",
    synopsis="inn inspect disk NAME [--json]",
    examples="""
inn inspect disk web
inn inspect disk web --json | jq '.disks[].layers[].path'
""",
    exit_status={4: "It does not run."},
)
@name_argument
def disk(app: App, name: str) -> None:
    """Show the images, counters and limits of a VM's disks.

    For each disk: the files it consists of, from the one that is written down to its base, with what each
    takes and who else uses it; how it is cached; requests since QEMU started, those in flight, errors,
    limits.
    """
    answer = app.instance(name).inspect_disk()
    if app.json:
        print_json(answer)
        return
    from innkeeper.cli import inspected_io

    inspected_io.show_disks(answer)


@verb(
    "net",
    synopsis="inn inspect net NAME [--json]",
    examples="""
inn inspect net web
inn inspect net web --json | jq '.nics[].guest.counters'
""",
    exit_status={4: "It does not run."},
)
@name_argument
def net(app: App, name: str) -> None:
    """Show a VM's network cards, from both sides.

    The host's side: model, MAC address, the process behind it, forwarded ports, what waits to be taken by
    the guest. The guest's side, where its agent answers: addresses, state and counters.
    """
    answer = app.instance(name).inspect_net()
    if app.json:
        print_json(answer)
        return
    from innkeeper.cli import inspected_io

    inspected_io.show_nics(answer)
