"""Clone a VM: a copy of its own, which shares nothing with it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

from innkeeper.client.hold import hold
from innkeeper.client.transport import Transport, segment, verb_deadline

if TYPE_CHECKING:
    from innkeeper.client.instance import Instance

# The daemon's own deadline, and the way there and back.
_CLONE_S: Final = 6.1 * 3600.0


def clone(
    parent: Instance,
    transport: Transport,
    name: str,
    *,
    ssh_keys: bool = False,
    start: bool = True,
    wait: str = "running",
    timeout_s: float | None = None,
) -> Instance:
    """A VM of its own with whole copies of the disks. Nothing is left when this is ended half-way."""
    token = secrets.token_hex(8)
    body: dict[str, Any] = {"name": name, "ssh_keys": ssh_keys, "start": start, "wait": wait, "hold": token}
    body |= {} if timeout_s is None else {"timeout_s": timeout_s}
    path = f"/v1/instances/{segment(parent.name)}/clone"
    with hold(transport, token):
        limit = _CLONE_S if timeout_s is None else verb_deadline(timeout_s)
        made = parent.sibling(transport.json("POST", path, body=body, timeout_s=limit))
        return made.keep()
