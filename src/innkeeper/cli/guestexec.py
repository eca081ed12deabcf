"""Run a command in a guest with our own input and output; used by `inn exec` and `inn run`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from innkeeper.cli.app import App
from innkeeper.cli.output import write_bytes, write_error_bytes


def run(
    app: App,
    name: str,
    argv: Sequence[str],
    *,
    interactive: bool = False,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> tuple[int, dict[str, Any]]:
    """The exit status, and with --json what it printed (else that goes out as it comes). Input is
    streamed where it is no terminal, or with `interactive`."""
    from innkeeper.cli.terminal import stdin_fd

    fd = stdin_fd()
    stdin = fd if fd is not None and (interactive or not os.isatty(fd)) else None
    out, err = bytearray(), bytearray()
    status = app.instance(name).exec_streamed(
        argv,
        stdin=stdin,
        env=env,
        timeout_s=timeout_s,
        on_stdout=out.extend if app.json else write_bytes,
        on_stderr=err.extend if app.json else write_error_bytes,
    )
    answer = {
        "name": name,
        "exit_status": status,
        "stdout": out.decode(errors="replace"),
        "stderr": err.decode(errors="replace"),
    }
    return status, answer
