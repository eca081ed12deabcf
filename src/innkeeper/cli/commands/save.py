"""`inn save`."""

from __future__ import annotations

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import names_argument, verb
from innkeeper.cli.many import each
from innkeeper.cli.snapshotting import writing
from innkeeper.cli.types import timeout_option


@verb(
    "save",
    synopsis="inn save NAME... [--compress] [--timeout TIME] [--json]",
    examples="""
inn save web
inn restore web
""",
    exit_status={4: "It does not run, or there is too little disk space."},
)
@names_argument
@click.option("--compress", is_flag=True, help="Compress the memory (zstd).")
@timeout_option("Give up after this time (default: 1h); the VM runs on then.")
def save(app: App, names: tuple[str, ...], compress: bool, timeout_s: float | None) -> None:
    """Stop VMs with their whole state kept on disk.

    The guest is not asked and notices nothing: inn restore lets it run on from exactly there, also after
    the host was restarted. inn start instead boots it; what was saved stays until it is restored, saved
    again, or removed as the snapshot `saved`.
    """

    def act(name: str) -> dict[str, object]:
        with writing(app, name, "save"):
            return app.instance(name).save(compress=compress, timeout_s=timeout_s).data

    each(app, names, act)
