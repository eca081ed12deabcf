"""File systems of a guest at rest for a moment, so that its disks alone are enough to start from.

A guest that stays frozen is a dead guest, so thawing happens whatever else went wrong; after a daemon
that was killed in between, the next one does it (agent/snapshots.py).
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Final

from innkeeper.agent.context import Running
from innkeeper.errors import InnkeeperError, Unsupported
from innkeeper.guest.agent import GuestAgent

log = logging.getLogger("innkeeper.agent")

FREEZE_DEADLINE_S: Final = 10.0
THAW_DEADLINE_S: Final = 15.0
_PAUSE_S: Final = 0.1


class FileSystems:
    """`freeze` when the moment is near; leaving the context thaws."""

    def __init__(self, running: Running, *, wanted: bool) -> None:
        self._running = running
        self._wanted = wanted
        self._asked = False
        self.stuck = False  # they could not be thawed

    async def __aenter__(self) -> FileSystems:
        return self

    async def freeze(self) -> bool:
        """Whether they are at rest. False when nobody asked for it, or no agent could do it."""
        if not self._wanted or not self._running.machine.agent_open:
            return False
        self._asked = True
        try:
            async with asyncio.timeout(FREEZE_DEADLINE_S):
                await self._running.agent.fsfreeze_freeze()
                return True
        except (InnkeeperError, TimeoutError) as error:
            log.info("the file systems of %s were not frozen: %s", self._running.uid, error)
            return False

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._asked:
            self.stuck = not await asyncio.shield(asyncio.ensure_future(thaw(self._running.agent)))


async def thaw(agent: GuestAgent) -> bool:
    """Whether the guest's file systems are thawed. Tries again: its connection may just be changing hands."""
    try:
        async with asyncio.timeout(THAW_DEADLINE_S):
            while True:
                try:
                    await agent.fsfreeze_thaw()
                    return True
                except Unsupported:
                    return True  # then it could not have frozen them either
                except InnkeeperError as error:
                    log.debug("not thawed yet: %s", error)
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        log.error("a guest's file systems could not be thawed within %g s", THAW_DEADLINE_S)
        return False
