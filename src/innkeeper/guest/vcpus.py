"""The guest's own view of its vCPUs, through the agent (qga: guest-get-vcpus, guest-set-vcpus)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from innkeeper.errors import Failed
from innkeeper.guest.agent import GuestAgent

_LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class GuestCpu:
    online: bool
    can_offline: bool


def switches(known: Mapping[int, GuestCpu], count: int) -> dict[int, bool]:
    """Which vCPUs to bring online or take offline, by number, so that `count` are online: the lowest come
    first and go last."""
    online = sorted(number for number, one in known.items() if one.online)
    if len(online) < count:
        offline = sorted(number for number, one in known.items() if not one.online)
        return dict.fromkeys(offline[: count - len(online)], True)
    spare = [number for number in online if known[number].can_offline]
    surplus = len(online) - count
    return dict.fromkeys(spare[-surplus:] if surplus else [], False)


async def use_vcpus(agent: GuestAgent, count: int, deadline_s: float) -> int:
    """Have the guest use `count` of its vCPUs, once it has noticed them; how many it uses, which is another
    number when it does not get there by the deadline. Raises what every agent command raises."""
    online = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            while True:
                known = await _known(agent)
                online = sum(one.online for one in known.values())
                if online == count:
                    return online
                if wanted := switches(known, count):
                    # It fails for one that is just coming up by itself, or is busy; the next look tells.
                    with contextlib.suppress(Failed):
                        asked = [{"logical-id": number, "online": on} for number, on in wanted.items()]
                        await agent.execute("guest-set-vcpus", vcpus=asked)
                        continue
                await asyncio.sleep(_LOOK_S)
    return online


async def _known(agent: GuestAgent) -> dict[int, GuestCpu]:
    answer = await agent.execute("guest-get-vcpus")
    try:
        return {
            int(one["logical-id"]): GuestCpu(one["online"] is True, one.get("can-offline") is True)
            for one in answer  # type: ignore[attr-defined]
        }
    except (TypeError, KeyError, ValueError, AttributeError):
        raise Failed("the guest agent's answer to guest-get-vcpus makes no sense") from None
