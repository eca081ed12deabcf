"""`inn serve`."""

from __future__ import annotations

import os
import select
import signal

import click
from click.exceptions import Exit

from innkeeper.cli.app import App
from innkeeper.cli.command import verb
from innkeeper.cli.output import print_json
from innkeeper.errors import DaemonUnreachable, Failed, Unsupported
from innkeeper.paths import Paths, default_paths

_STOP_WITHIN_S = 15.0


@verb(
    "serve",
    synopsis="inn [--state DIR] serve [--tcp ADDR:PORT] [--take-over]\n"
    "inn [--state DIR] serve --stop [--json]",
    examples="""
inn serve
inn --state /tmp/trial serve
inn serve --stop
""",
    exit_status={3: "With --stop: no daemon runs.", 4: "Another daemon has this state directory."},
)
@click.option("--tcp", metavar="ADDR:PORT", help="Listen there, too. Whoever can reach it rules all VMs.")
@click.option("--stop", is_flag=True, help="Stop the daemon; VMs run on.")
@click.option("--take-over", is_flag=True, help="Use a state directory that another machine has written.")
def serve(app: App, tcp: str | None, stop: bool, take_over: bool) -> None:
    """Run the daemon, or stop the one in the background.

    As root in system mode (/var/lib/innkeeper), else in session mode, or with a state directory of
    its own (--state, $INNKEEPER_STATE): such daemons live side by side. It stays in the foreground
    until ctrl-C or SIGTERM. VMs outlive the daemon, and the next one finds them again.

    Other commands start it by themselves where it does not run; a service manager can do it with
    the unit file that comes with the package.
    """
    paths = default_paths(app.state)
    if stop:
        if tcp or take_over:
            raise click.UsageError("--stop goes with no other option")
        pid = _stop(app, paths)
        if app.json:
            print_json({"pid": pid, "stopped": True})
        else:
            print(f"stopped the daemon (pid {pid})")
        return
    from innkeeper.daemon.main import Options, main

    raise Exit(main(Options(app.state, tcp, take_over)))


def _stop(app: App, paths: Paths) -> int:
    """SIGTERM to the process that answers on the socket or, when it hangs, to the one in the pid file
    if that is a daemon of ours: a pid alone may belong to anybody by now."""
    from innkeeper.errors import NotFound

    pid = _answering_pid(app) or _pid_in_file(paths)
    if pid is None:
        raise NotFound(f"No daemon runs with state {paths.state}", hint="there is nothing to stop")
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return pid
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], _STOP_WITHIN_S)[0]:
            raise Failed(
                f"The daemon (pid {pid}) did not end within {_STOP_WITHIN_S:g} s",
                hint=f"see {paths.daemon_log}; kill -9 {pid} loses nothing",
            )
    except PermissionError:
        raise Unsupported(f"The daemon (pid {pid}) belongs to somebody else", hint="ask them") from None
    finally:
        os.close(process)
    return pid


def _answering_pid(app: App) -> int | None:
    try:
        pid = app.quiet_client().version(timeout_s=5).get("pid")
    except DaemonUnreachable:
        return None
    return pid if isinstance(pid, int) else None


def _pid_in_file(paths: Paths) -> int | None:
    try:
        pid = int(paths.daemon_pid.read_text().split()[0])
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except (OSError, ValueError, IndexError):
        return None
    ours = any(word in (b"innkeeper.daemon", b"serve") for word in words)
    return pid if ours and pid > 1 else None
