"""The guest's network interfaces with their counters, as its agent tells them (it may lie)."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import Final

from innkeeper.errors import Failed, InnkeeperError
from innkeeper.guest.agent import GuestAgent
from innkeeper.guest.channel import printable

# GuestNetworkInterfaceStat, qga/qapi-schema.json
COUNTERS: Final = (
    "rx-bytes", "rx-packets", "rx-errs", "rx-dropped", "tx-bytes", "tx-packets", "tx-errs", "tx-dropped",
)  # fmt: skip
_COMMAND: Final = "guest-network-get-interfaces"
_DEADLINE_S: Final = 3.0
_NAME: Final = re.compile(r"[\w.@:-]{1,64}")  # of an interface of Linux; no slash, since it goes into a path
_STATE_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    mac: str
    addresses: tuple[str, ...]
    counters: dict[str, int] = field(default_factory=dict)


async def interfaces(agent: GuestAgent) -> list[Interface]:
    """Raises what the agent's client raises, and Failed when the answer makes no sense."""
    answer = await agent.execute(_COMMAND, deadline_s=_DEADLINE_S)
    try:
        if not isinstance(answer, list):
            raise TypeError
        return [_interface(one) for one in answer]
    except (TypeError, ValueError, KeyError, AttributeError):
        raise Failed(f"the guest agent's answer to {_COMMAND} makes no sense") from None


def _interface(one: dict[str, object]) -> Interface:
    told, addresses = one.get("statistics") or {}, one.get("ip-addresses") or []
    if not isinstance(told, dict) or not isinstance(addresses, list):
        raise TypeError
    counters = {name.replace("-", "_"): told[name] for name in COUNTERS if isinstance(told.get(name), int)}
    found = tuple(
        f"{printable(str(entry['ip-address']))}/{int(entry.get('prefix', 0))}" for entry in addresses
    )
    mac = printable(str(one.get("hardware-address", "")))
    return Interface(printable(str(one["name"])), mac, found, counters)


async def link_state(agent: GuestAgent, interface: str) -> str:
    """`up`, `down`, ... of an interface of a Linux guest; empty where that cannot be told."""
    if not _NAME.fullmatch(interface) or interface in (".", ".."):
        return ""
    try:
        handle = await agent.file_open(f"/sys/class/net/{interface}/operstate", "r")
    except InnkeeperError:
        return ""
    try:
        return printable((await agent.file_read(handle, _STATE_BYTES)).data.decode(errors="replace").strip())
    except InnkeeperError:
        return ""
    finally:
        with contextlib.suppress(InnkeeperError):
            await agent.file_close(handle)
