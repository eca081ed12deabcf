"""Run a command in the guest, with its output while it runs, its stdin, and a way to stop it.

The guest agent alone cannot do that: guest-exec tells output only at the end and takes stdin only at
the start. Ways that were weighed:

- guest-file-read on a FIFO loses data: the agent reads with fread(3) on a non-blocking descriptor, and
  a short read that runs into EAGAIN is answered as an error, without the bytes already read.
- The command writing into a plain file that we tail: unbounded on the guest's tmpfs, no backpressure.
- One guest-exec of `dd count=1` on a FIFO per piece: a process per 64 KiB and per line of output, and
  no clean end, since opening a FIFO without writers blocks.
- Chosen: pumps in the guest that cut the output into bounded segment files, acknowledged by us, and
  deliver what is left through guest-exec's own capture at the end. See `wrapper`. A command that ends
  soon takes one guest-exec and a few guest-exec-status; a long one is tailed; `yes` stops at 3 MiB.

Guests without a POSIX shell and setsid (Windows) get plain guest-exec: output at the end, 16 MiB at most.
"""

from __future__ import annotations

import re
import secrets
import shlex
from typing import Final

from innkeeper.errors import Failed, Unsupported
from innkeeper.guest import wrapper
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.plain import PlainSession, cannot_start
from innkeeper.guest.session import STDERR, STDOUT, ExecRequest, ExecSession
from innkeeper.guest.shell import ShellSession

__all__ = ["STDERR", "STDOUT", "ExecRequest", "ExecSession", "open_exec"]

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


async def open_exec(agent: GuestAgent, request: ExecRequest) -> ExecSession:
    """Start a command. One that cannot be found or executed ends with 127 or 126 and says so on stderr.
    Raises BadRequest, Unsupported (agent without guest-exec), and what every agent command raises."""
    request.check()
    try:
        return await _start_scripted(agent, request)
    except Failed as error:
        if not cannot_start(error):
            raise
    if request.cwd is not None:
        raise Unsupported(
            "this guest has no shell, so a command cannot get a working directory",
            hint="leave the directory out",
        )
    return PlainSession(agent, request)


async def _start_scripted(agent: GuestAgent, request: ExecRequest) -> ExecSession:
    ident = secrets.token_hex(16)
    argv, exports = list(request.argv), ""
    if all(_IDENTIFIER.match(key) for key in request.env):
        exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in request.env.items())
    else:  # a shell cannot export such names, env(1) can
        argv = ["env", *(f"{key}={value}" for key, value in request.env.items()), *argv]
    args = [ident, "1" if request.stdin else "", request.cwd or "", "1" if exports else "", *argv]
    pid = await agent.exec_start(
        "setsid",
        ["sh", "-c", wrapper.WRAPPER, "sh", *args],
        stdin=exports.encode() if exports else None,
    )
    return ShellSession(agent, pid, ident, stdin=request.stdin)
