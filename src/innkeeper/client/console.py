"""The serial console of a guest: raw bytes both ways, until either side leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from innkeeper import errors
from innkeeper.client.exec import read_some
from innkeeper.client.transport import Transport, error_in, segment
from innkeeper.client.websocket import BACKLOG_MAX, Message


def attach(
    transport: Transport,
    name: str,
    *,
    output: Callable[[bytes], object],
    stdin: int | None = None,
    escape: bytes = b"",
    timeout_s: float | None = None,
    on_open: Callable[[], object] = lambda: None,
) -> bool:
    """Show the console until it ends (False) or the user leaves (True): with the `escape` key, or when
    `timeout_s` is over. The end of `stdin` does not end it: output may still come."""
    ws = transport.websocket(f"/v1/instances/{segment(name)}/console")
    end = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        on_open()
        while True:
            for message in ws.take():
                output(_bytes_of(message))
            if ws.closed:
                if ws.close_reason:
                    raise errors.Failed(f"The console of {name} was closed: {ws.close_reason}")
                return False
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return True
            listening = [stdin] if stdin is not None and ws.backlog < BACKLOG_MAX else []
            for fd in ws.wait(listening, left):
                data = read_some(fd)
                typed, found, _ = data.partition(escape) if escape else (data, b"", b"")
                if typed:
                    ws.send(typed)
                if found:
                    return True
                if not data:
                    stdin = None
    finally:
        ws.close()


def _bytes_of(message: Message) -> bytes:
    """Bytes are the console's; text can only be an error."""
    if isinstance(message, bytes):
        return message
    try:
        error = error_in(json.loads(message))
    except ValueError:
        return message.encode()
    if error is not None:
        raise error
    return b""
