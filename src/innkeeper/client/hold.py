"""Hold VMs while they are made: the daemon removes them when this process is gone, however it went."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from innkeeper.client.transport import Transport


@contextmanager
def hold(transport: Transport, token: str) -> Iterator[None]:
    """While it lasts, forks may be made with this token. At its end, also when this process is killed,
    the daemon removes those that are left and were not kept."""
    body = json.dumps({"token": token}).encode()
    headers = {"Content-Type": "application/json"}
    with transport.stream("POST", "/v1/holds", data=body, headers=headers, body_timeout_s=0) as response:
        parts = response.parts()
        next(parts, b"")  # it holds from here on
        yield
