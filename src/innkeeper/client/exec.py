"""Run a command in a guest: one websocket, bytes both ways, the exit status at the end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from innkeeper import errors
from innkeeper.client.transport import MARGIN_S, Transport, error_in, segment
from innkeeper.client.websocket import BACKLOG_MAX, WebSocket

STDOUT: Final = 1
STDERR: Final = 2
_CHUNK: Final = 65536

Sink = Callable[[bytes], object]


class Completed:
    """What a command in the guest left behind."""

    __slots__ = ("status", "stderr", "stdout")

    def __init__(self, status: int, stdout: bytes, stderr: bytes) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr

    def __repr__(self) -> str:
        return f"Completed(status={self.status}, stdout={self.stdout!r}, stderr={self.stderr!r})"


def run(
    transport: Transport,
    name: str,
    argv: Sequence[str],
    *,
    stdin: bytes | int | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    on_stdout: Sink,
    on_stderr: Sink,
) -> int:
    """The command's exit status. `stdin` is bytes, a file descriptor to stream from, or nothing."""
    if not argv:
        raise errors.BadRequest("No command given", hint="write it after --")
    request: dict[str, Any] = {"argv": list(argv), "env": dict(env or {}), "stdin": stdin is not None}
    if timeout_s is not None:
        request["timeout_s"] = timeout_s
    ws = transport.websocket(f"/v1/instances/{segment(name)}/exec")
    try:
        ws.send(json.dumps(request))
        return _Session(ws, stdin, on_stdout, on_stderr).run(timeout_s)
    finally:
        ws.close()


class _Session:
    def __init__(self, ws: WebSocket, stdin: bytes | int | None, on_stdout: Sink, on_stderr: Sink) -> None:
        self._ws = ws
        self._sinks = {STDOUT: on_stdout, STDERR: on_stderr}
        self._fd = stdin if isinstance(stdin, int) else None
        self._status: int | None = None
        if isinstance(stdin, bytes):
            # Websocket messages have a limit on the other side, too.
            for start in range(0, len(stdin), _CHUNK):
                ws.send(stdin[start : start + _CHUNK])
            ws.send("eof")

    def run(self, timeout_s: float | None) -> int:
        end = None if timeout_s is None else time.monotonic() + timeout_s + MARGIN_S
        while True:
            for message in self._ws.take():
                self._accept(message)
            if self._status is not None:
                return self._status
            if self._ws.closed:
                raise errors.Failed(
                    f"The connection ended before the command did: {self._ws.close_reason or 'closed'}",
                    hint="the VM or the daemon may have stopped; look with inn list",
                )
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise errors.GuestTimeout(f"The command did not end within {timeout_s:g} s")
            self._move(left)

    def _move(self, timeout_s: float | None) -> None:
        hungry = self._fd is not None and self._ws.backlog < BACKLOG_MAX
        also = [self._fd] if hungry and self._fd is not None else []
        for fd in self._ws.wait(also, timeout_s):
            data = read_some(fd)
            if data:
                self._ws.send(data)
            else:
                self._ws.send("eof")
                self._fd = None

    def _accept(self, message: bytes | str) -> None:
        if isinstance(message, bytes):
            if message:
                self._sinks.get(message[0], self._sinks[STDERR])(message[1:])
            return
        try:
            answer = json.loads(message)
        except ValueError:
            return
        error = error_in(answer)
        if error is not None:
            raise error
        if isinstance(answer, dict) and isinstance(answer.get("exit_status"), int):
            self._status = answer["exit_status"]


def read_some(fd: int) -> bytes:
    """What can be read now; empty at the end. A terminal that went away counts as the end."""
    try:
        return os.read(fd, _CHUNK)
    except OSError:
        return b""
