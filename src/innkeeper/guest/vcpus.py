"""The guest's own view of its vCPUs, through the agent."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from innkeeper.errors import Failed
from innkeeper.guest.agent import GuestAgent

_LOOK_S: Final = 0.05


async def bring_online(agent: GuestAgent, count: int, deadline_s: float) -> int:
    """Wait until the guest sees `count` vCPUs and have it use all of them; how many it uses, which is fewer
    when it does not get there by the deadline. Raises what every agent command raises."""
    online = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            while True:
                known = await _vcpus(agent)
                online = sum(known.values())
                if online >= count:
                    return online
                offline = [number for number, is_online in known.items() if not is_online]
                if offline:
                    # It fails for one that is just coming up by itself; the next look tells.
                    with contextlib.suppress(Failed):
                        await agent.execute(
                            "guest-set-vcpus",
                            vcpus=[{"logical-id": number, "online": True} for number in offline],
                        )
                await asyncio.sleep(_LOOK_S)
    return online


async def _vcpus(agent: GuestAgent) -> dict[int, bool]:
    """Which vCPUs the guest knows, and whether it uses them."""
    answer = await agent.execute("guest-get-vcpus")
    try:
        return {int(one["logical-id"]): one["online"] is True for one in answer}  # type: ignore[attr-defined]
    except (TypeError, KeyError, ValueError):
        raise Failed("the guest agent's answer to guest-get-vcpus makes no sense") from None
