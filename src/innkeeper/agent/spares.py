"""Copies of templates that this daemon has spawned ahead, and whoever waits for news of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from innkeeper.engine.base import Machine


@dataclass
class Spares:
    """`waiting` by uid: made by agent/pool.py, taken by the instance that was created with its uid."""

    waiting: dict[str, Machine] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # look again at what is wanted and there

    def take(self, uid: str) -> Machine | None:
        """It is the instance's from now on."""
        self.changed.set()
        return self.waiting.pop(uid, None)

    async def drop(self, uid: str) -> None:
        """Of an instance that goes before it has taken it."""
        machine = self.take(uid)
        if machine is not None:
            await machine.kill()
            await machine.detach()
