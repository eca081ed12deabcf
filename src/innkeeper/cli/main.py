"""The `inn` command: finds the verb, and turns whatever goes wrong into one line and an exit status."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from innkeeper.cli import quick
from innkeeper.cli.app import App
from innkeeper.errors import InnkeeperError

COMPLETE_VARIABLE = "_INN_COMPLETE"
INTERRUPTED = 130
PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status. Without `argv` this process is `inn`, and ends."""
    if argv is None:
        _leave(main(sys.argv[1:]))
    args = list(argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # It was closed (`inn list >&-`): then nobody wants it.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if COMPLETE_VARIABLE in os.environ:
        return _complete()
    app = App()
    try:
        status = quick.run(args, app)
        if status is None:
            from innkeeper.cli import root

            status = root.run(args, app, INTERRUPTED)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        return _pipe_closed()
    except Exception as error:
        try:
            return _report(error, "--json" in _own_part(args))
        except BrokenPipeError:
            return _pipe_closed()
    except KeyboardInterrupt as interrupt:
        # SIGTERM arrives as a KeyboardInterrupt that knows its status (interrupts.py).
        return interrupt.args[0] if interrupt.args else INTERRUPTED


def _leave(status: int) -> NoReturn:
    """End without taking the interpreter apart, which takes 4 ms of every command; nothing waits for
    it: whatever must be undone is in contexts, which have ended."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _report(error: Exception, as_json: bool) -> int:
    if os.environ.get("INNKEEPER_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    code, message, status, details = _describe(error)
    print(f"inn: {' '.join(message.split())}", file=sys.stderr)
    if as_json:
        from innkeeper.cli.output import print_json

        form = {"code": code, "message": message, "hint": "", "details": details}
        print_json({"error": error.to_dict() if isinstance(error, InnkeeperError) else form})
        sys.stdout.flush()
    return status


def _describe(error: Exception) -> tuple[str, str, int, dict[str, object]]:
    """Code, line, exit status and details of whatever was raised."""
    if isinstance(error, InnkeeperError):
        return error.code, str(error), error.exit_code, error.details
    import click

    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "inn"
        message = error.format_message().strip().rstrip(".")
        return "bad_request", f"{message}; see {command} --help", 2, {}
    if isinstance(error, click.ClickException):
        return "failed", error.format_message(), 1, {}
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return "failed", f"{where}{error.strerror or error}", 1, {}
    what = f"Internal error: {type(error).__name__}: {error}"
    return "error", f"{what}; run it again with INNKEEPER_DEBUG=1 and report the traceback", 1, {}


def _own_part(args: list[str]) -> list[str]:
    """The arguments meant for us, not for a command in the guest."""
    return args[: args.index("--")] if "--" in args else args


def _pipe_closed() -> int:
    """Nobody reads our output any more (`inn list | head`): not worth a word. Python would complain
    when it flushes at exit, so the rest goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return PIPE_CLOSED


def _complete() -> int:
    from click.shell_completion import shell_complete

    from innkeeper.cli.root import cli

    return shell_complete(cli, {"obj": App()}, "inn", COMPLETE_VARIABLE, os.environ[COMPLETE_VARIABLE])


if __name__ == "__main__":
    sys.exit(main())
