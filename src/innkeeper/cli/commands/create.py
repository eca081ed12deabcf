"""`inn create`."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import verb
from innkeeper.cli.creation import Creation
from innkeeper.cli.interrupts import orderly_signals
from innkeeper.cli.output import print_json
from innkeeper.cli.vmoptions import vm_options


@verb(
    "create",
    synopsis="inn create IMAGE|PATH [--name NAME] [OPTIONS]\ninn create NAME --image IMAGE|PATH [OPTIONS]",
    examples="""
inn create debian --name web --cpus 2 --memory 1GiB --forward 8080:80
inn create db --image debian --root-size 20GiB --disk 100GiB
inn create --kernel ./vmlinuz --initrd ./initrd.img --append console=ttyS0
""",
    exit_status={3: "No such image or file.", 4: "The name is taken, or there is no capacity."},
)
@vm_options
@click.option("--image", "from_image", metavar="IMAGE|PATH", help="What to boot; then the argument is NAME.")
def create(app: App, from_image: str | None, **options: Any) -> None:
    """Create a VM without starting it.

    IMAGE is one of inn image list. A PATH (it has a slash, or is a file here) is a disk image, which
    is copied, or an ISO, which is put into a CD-ROM drive. Prints the name of the VM.
    """
    if from_image is not None:
        if options["image"] and options["name"]:
            raise click.UsageError("With --image, the argument is the name: leave out --name")
        options["name"] = options["image"] or options["name"]
        options["image"] = from_image
    with orderly_signals():
        instance = Creation(app, options).create(start=False, wait="running")
    if app.json:
        print_json(instance.data)
    else:
        print(instance.name)
