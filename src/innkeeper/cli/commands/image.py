"""`inn image`: the catalogue of images."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import CONTEXT, LazyGroup, Table, complete_images, verb
from innkeeper.cli.interrupts import orderly_signals
from innkeeper.cli.many import each
from innkeeper.cli.output import age, print_json, print_pairs, print_table
from innkeeper.cli.progress import Stages
from innkeeper.cli.specargs import existing_file
from innkeeper.units import human_size

Json = dict[str, Any]
# Debian's names of architectures, and QEMU's.
ARCHITECTURES = {
    "amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64", "riscv64": "riscv64",
}  # fmt: skip


class ImageGroup(LazyGroup):
    table: ClassVar[Table] = {
        "list": ("image", "List images."),
        "show": ("image", "Show all about one image."),
        "build": ("image", "Build an image from a recipe."),
        "import": ("image", "Take a disk image into the catalogue."),
        "rm": ("image", "Remove images."),
    }
    examples = """
inn image build tiny
inn image list
"""


@click.group("image", cls=ImageGroup, context_settings=CONTEXT)
def image() -> None:
    """Build, import, list and remove images.

    An image is content-addressed and never changes: VMs are made from it, and each writes to a disk
    of its own.
    """


@verb(
    "list",
    synopsis="inn image list [-q] [--json]",
    examples="""
inn image list
inn image list --json | jq -r '.[].name'
""",
)
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
def list_(app: App, quiet: bool) -> None:
    """List images.

    With --json: an array of objects with name, id, kind, architecture, size_bytes, created_at and
    origin.
    """
    images = app.client.images.list()
    if app.json:
        print_json(images)
    elif quiet:
        for item in images:
            print(item["name"])
    else:
        print_table(
            ("NAME", "ID", "KIND", "ARCH", "SIZE", "AGE"),
            [
                (
                    item.get("name"),
                    str(item.get("id", "")).removeprefix("sha256:")[:12],
                    item.get("kind"),
                    item.get("architecture"),
                    _size(item),
                    age(item.get("created_at")),
                )
                for item in images
            ],
        )


@verb(
    "show",
    synopsis="inn image show NAME [--json]",
    examples="""
inn image show debian
inn image show debian --json | jq .origin
""",
)
@click.argument("name", metavar="NAME", shell_complete=complete_images)
def show(app: App, name: str) -> None:
    """Show all about one image, and where it came from."""
    item = app.client.images.get(name)
    if app.json:
        print_json(item)
        return
    origin = item.get("origin") or {}
    shown = {**item, "origin": {key: value for key, value in origin.items() if key != "packages" and value}}
    pairs = [
        (key.removesuffix("_bytes").replace("_", " "), _shown(key, value)) for key, value in shown.items()
    ]
    print_pairs(pairs)
    if packages := origin.get("packages"):
        print("packages:")
        print_pairs([(f"  {name}", version) for name, version in packages.items()])


@verb(
    "build",
    synopsis="inn image build tiny|debian [--name NAME] [--arch ARCH] [--package NAME]... [--size SIZE]"
    " [--json]",
    examples="""
inn image build tiny
inn image build tiny --arch arm64           makes tiny-arm64
inn image build debian --name web --package nginx --package php-fpm --size 8GiB
""",
    exit_status={4: "A program or the disk space it needs is missing; the error says which."},
)
@click.argument("recipe", metavar="RECIPE")
@click.option("--name", metavar="NAME", help="Name of the image (default: the recipe's).")
@click.option(
    "--package",
    "packages",
    metavar="NAME",
    multiple=True,
    help="Of debian: a Debian package to install beside those of the recipe (repeatable).",
)
@click.option("--size", metavar="SIZE", help="Of debian: size of the disk (default: 4GiB).")
@click.option(
    "--arch",
    type=click.Choice([*ARCHITECTURES]),
    default="amd64",
    help="Of tiny: the architecture of its guests (default: amd64). Others are emulated.",
)
def build(
    app: App, recipe: str, name: str | None, packages: tuple[str, ...], size: str | None, arch: str
) -> None:
    """Build an image from a recipe.

    tiny is Debian's kernel with busybox and the guest agent, and boots in one to two seconds. debian
    is a whole Debian with systemd, cloud-init, guest agent and OpenSSH. Both are made from the
    package sources of this machine. Progress goes to stderr, the name of the image to stdout.
    """
    _make(
        app,
        lambda progress: app.client.images.build(
            recipe,
            name=name,
            packages=packages,
            size=size,
            arch=ARCHITECTURES[arch],
            on_progress=progress,
        ),
    )


@verb(
    "import",
    synopsis="inn image import PATH [--name NAME] [--os OS] [--json]",
    examples="""
inn image import ./noble-server-cloudimg-amd64.img --name ubuntu
""",
    exit_status={1: "It is no disk image, or a truncated one."},
)
@click.argument("path", metavar="PATH")
@click.option("--name", metavar="NAME", help="Name of the image (default: from the file's name).")
@click.option(
    "--os",
    "system",
    type=click.Choice(["linux", "windows", "other"]),
    default="linux",
    help="What is on it (default: linux): under KVM, Windows gets the help that Hyper-V would give it.",
)
def import_(app: App, path: str, name: str | None, system: str) -> None:
    """Take a disk image into the catalogue.

    The file is copied. Formats are those of qemu-img: qcow2, raw, vmdk, vdi, vhdx.
    """
    source = existing_file(path, "disk image")
    chosen = name or _name_from(path)
    _make(app, lambda progress: app.client.images.import_(chosen, source, os=system, on_progress=progress))


@verb(
    "rm",
    synopsis="inn image rm NAME... [--json]",
    examples="""
inn image rm base
""",
    exit_status={4: "A VM uses it."},
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_images)
def rm(app: App, names: tuple[str, ...]) -> None:
    """Remove images.

    An image that VMs were made from stays until those are removed.
    """

    def remove(name: str) -> Json:
        app.client.images.remove(name)
        return {"name": name, "removed": True}

    each(app, names, remove)


def _make(app: App, make: Callable[[Callable[[Json], object]], Json]) -> None:
    stages = Stages()
    with orderly_signals():
        try:
            item = make(stages.show)
        finally:
            stages.end()
    if app.json:
        print_json(item)
    else:
        print(item.get("name"))


def _name_from(path: str) -> str:
    """`Noble Server.img` -> `noble-server`."""
    stem = os.path.basename(path).partition(".")[0].lower()
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in stem).strip("-")[:63] or "image"


def _size(item: Json) -> str:
    value = item.get("size_bytes")
    return human_size(value) if isinstance(value, int) else ""


def _shown(key: str, value: Any) -> Any:
    if key.endswith("_bytes") and isinstance(value, int):
        return human_size(value)
    if key == "created_at":
        return f"{age(value)} ago"
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    return ", ".join(str(item) for item in value) if isinstance(value, list) else value
