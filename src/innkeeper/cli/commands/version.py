"""`inn version`."""

from __future__ import annotations

import platform

from innkeeper.cli.app import App
from innkeeper.cli.command import verb
from innkeeper.cli.output import print_json, print_pairs
from innkeeper.errors import DaemonUnreachable
from innkeeper.version import version as installed_version


@verb(
    "version",
    synopsis="inn version [--json]",
    examples="""
inn version
inn version --json | jq .daemon.pid
""",
)
def version(app: App) -> None:
    """Print the versions of this command and of the daemon.

    Starts no daemon: where none answers, it says so.
    """
    ours = installed_version()
    try:
        daemon = app.quiet_client().version(timeout_s=5)
    except DaemonUnreachable:
        daemon = None
    if app.json:
        print_json({"version": ours, "python": platform.python_version(), "daemon": daemon})
        return
    print_pairs([("inn", ours), ("python", platform.python_version())])
    if daemon is None:
        print_pairs([("daemon", "not running")])
        return
    print_pairs(
        [
            ("daemon", daemon.get("version")),
            ("pid", daemon.get("pid")),
            ("mode", daemon.get("mode")),
            ("state", daemon.get("state_dir")),
            ("host", daemon.get("host")),
        ]
    )
