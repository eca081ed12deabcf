"""`inn snapshot`: moments of a VM, kept on disk."""

from __future__ import annotations

from typing import Any, ClassVar

import click

from innkeeper.cli.app import App, note
from innkeeper.cli.command import CONTEXT, LazyGroup, Table, name_argument, verb
from innkeeper.cli.output import age, print_json, print_pairs, print_table
from innkeeper.cli.snapshotting import writing
from innkeeper.cli.types import timeout_option
from innkeeper.units import human_size

Json = dict[str, Any]


class SnapshotGroup(LazyGroup):
    table: ClassVar[Table] = {
        "create": ("snapshot", "Take a snapshot of a VM."),
        "list": ("snapshot", "List the snapshots of a VM."),
        "show": ("snapshot", "Show all about one snapshot."),
        "restore": ("snapshot", "Go back to a snapshot, or make a new VM from it."),
        "rm": ("snapshot", "Remove snapshots."),
    }
    examples = """
inn snapshot create web before-upgrade
inn snapshot restore web before-upgrade
"""


@click.group("snapshot", cls=SnapshotGroup, context_settings=CONTEXT)
def snapshot() -> None:
    """Keep moments of a VM, and go back to them.

    A snapshot of a running VM has its memory: restored, it runs on from exactly that moment.
    """


def _snapshot_argument(function: Any) -> Any:
    return click.argument("snapshot", metavar="SNAPSHOT")(function)


@verb(
    "create",
    synopsis="inn snapshot create NAME [SNAPSHOT] [--disks-only] [--compress] [--timeout TIME] [--json]",
    examples="""
inn snapshot create web
inn snapshot create web before-upgrade --compress
inn snapshot create db nightly --disks-only
""",
    exit_status={4: "It cannot be taken now or here: too little disk space, a disk used in place, ..."},
)
@name_argument
@click.argument("snapshot", metavar="[SNAPSHOT]", required=False)
@click.option(
    "--disks-only", is_flag=True, help="Without memory; the guest's agent brings its file systems to rest."
)
@click.option("--compress", is_flag=True, help="Compress the memory (zstd).")
@timeout_option("Give up after this time (default: 1h).")
def create(
    app: App, name: str, snapshot: str | None, disks_only: bool, compress: bool, timeout_s: float | None
) -> None:
    """Take a snapshot of a VM.

    Of a running VM with memory: it stands still for some milliseconds (printed), whatever its RAM, and
    runs on while the memory is written to disk. Of a VM that is off, and with --disks-only, the disks.
    Prints the name of the snapshot; without one given s1, s2 and so on.
    """
    with writing(app, name, "snapshot"):
        item = app.instance(name).snapshots.create(
            snapshot, disks_only=disks_only, compress=compress, timeout_s=timeout_s
        )
    if app.json:
        print_json(item)
        return
    print(item["name"])
    if item["note"]:
        note(item["note"])
    if item["pause_ms"]:
        note(f"{name} stood still for {item['pause_ms']:.0f} ms; {human_size(item['size_bytes'])} written")


@verb(
    "list",
    synopsis="inn snapshot list NAME [-q] [--json]",
    examples="""
inn snapshot list web
""",
)
@name_argument
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
def list_(app: App, name: str, quiet: bool) -> None:
    """List the snapshots of a VM.

    As a tree: each one below the one its disks derive from; * marks the one the VM itself derives from.
    SIZE is of the memory; disks are shared with the VM. With --json: an array.
    """
    tree = app.instance(name).snapshots.tree()
    items = tree["snapshots"]
    if app.json:
        print_json(items)
    elif quiet:
        for item in items:
            print(item["name"])
    else:
        rows = [
            (
                "  " * depth + item["name"] + (" *" if item["name"] == tree["current"] else ""),
                item["kind"],
                _state(item),
                human_size(item["size_bytes"]) if item["size_bytes"] else "",
                age(item["created_at"]),
            )
            for depth, item in _as_tree(items)
        ]
        print_table(("NAME", "KIND", "STATE", "SIZE", "AGE"), rows)


@verb(
    "show",
    synopsis="inn snapshot show NAME SNAPSHOT [--json]",
    examples="""
inn snapshot show web before-upgrade
inn snapshot show web before-upgrade --json | jq .labels
""",
)
@name_argument
@_snapshot_argument
def show(app: App, name: str, snapshot: str) -> None:
    """Show all about one snapshot: what it has, and what a host needs to restore it."""
    item = app.instance(name).snapshots.get(snapshot)
    if app.json:
        print_json(item)
        return
    labels = item["labels"]
    print_pairs(
        [
            ("name", item["name"]),
            ("of", item["instance"]),
            ("derives from", item["parent"]),
            ("kind", item["kind"]),
            ("state", _state(item)),
            ("age", age(item["created_at"])),
            ("size", human_size(item["size_bytes"])),
            ("RAM", human_size(item["ram_bytes"]) if item["ram_bytes"] else ""),
            ("QEMU", labels["qemu"]),
            ("machine", labels["machine"]),
            ("CPU", f"{labels['cpu_model']} ({labels['accelerator']})" if labels["accelerator"] else ""),
            ("pause", f"{item['pause_ms']:.0f} ms" if item["pause_ms"] else ""),
            ("note", item["note"]),
        ]
    )


@verb(
    "restore",
    synopsis="inn snapshot restore NAME SNAPSHOT [--as NEW] [--no-wait] [--timeout TIME] [--json]",
    examples="""
inn snapshot restore web before-upgrade
inn snapshot restore web before-upgrade --as web-old
""",
    exit_status={4: "It does not fit this host (QEMU, machine type, CPU), or there is too little memory."},
)
@name_argument
@_snapshot_argument
@click.option("--as", "new_name", metavar="NEW", help="Make a new VM of that name; NAME stays as it is.")
@click.option("--ssh-keys", is_flag=True, help="Give the new VM SSH host keys of its own.")
@click.option("--no-wait", is_flag=True, help="Return when it runs, before its agent answers.")
@timeout_option("Give up waiting after this time, such as 30s or 5m.")
def restore(
    app: App,
    name: str,
    snapshot: str,
    new_name: str | None,
    ssh_keys: bool,
    no_wait: bool,
    timeout_s: float | None,
) -> None:
    """Go back to a snapshot, or make a new VM from it.

    What happened in the VM since is lost: take a snapshot first to keep it. With memory it runs on from
    the moment of the snapshot, and its clock is set; with disks alone it boots from them, or stays off if
    it was. Its settings are again those of then. With --as nothing happens to NAME: a new VM begins
    there, with a name, addresses and machine-id of its own.
    """
    vm = app.instance(name).snapshots.restore(
        snapshot,
        new_name=new_name,
        ssh_keys=ssh_keys,
        wait="running" if no_wait else "ready",
        timeout_s=timeout_s,
    )
    if app.json:
        print_json(vm.data)
        return
    print(vm.name)
    if vm.data.get("note"):
        note(vm.data["note"])


@verb(
    "rm",
    synopsis="inn snapshot rm NAME SNAPSHOT... [--json]",
    examples="""
inn snapshot rm web before-upgrade
""",
)
@name_argument
@click.argument("snapshots", metavar="SNAPSHOT...", nargs=-1, required=True)
def rm(app: App, name: str, snapshots: tuple[str, ...]) -> None:
    """Remove snapshots.

    The guest notices nothing, and no data is copied. Disk layers that others use stay until they are
    gone, too.
    """
    from innkeeper.cli.many import each

    def remove(one: str) -> Json:
        app.instance(name).snapshots.remove(one)
        return {"name": one, "removed": True}

    each(app, snapshots, remove)


def _as_tree(items: list[Json]) -> list[tuple[int, Json]]:
    """Depth first, children in the order they were taken."""
    names = {item["name"] for item in items}
    children: dict[str, list[Json]] = {}
    for item in items:
        children.setdefault(item["parent"] if item["parent"] in names else "", []).append(item)
    found: list[tuple[int, Json]] = []

    def walk(parent: str, depth: int) -> None:
        for item in children.get(parent, []):
            found.append((depth, item))
            walk(item["name"], depth + 1)

    walk("", 0)
    return found


def _state(item: Json) -> str:
    if item["state"] == "taking" and item["total_bytes"]:
        return f"taking {item['written_bytes'] / item['total_bytes']:.0%}"
    return str(item["state"])
