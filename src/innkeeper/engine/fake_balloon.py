"""The balloon of a fake machine: a guest that gives what it is asked for, or does not."""

from __future__ import annotations

from innkeeper.engine.base import LaunchPlan
from innkeeper.engine.memory import Balloon, GuestMemory
from innkeeper.errors import EngineError


class FakeBalloon:
    """The part of a fake machine that is about its balloon."""

    plan: LaunchPlan
    pid: int
    guest_memory: GuestMemory | None = None  # what its driver tells
    ignores_balloon = False
    frozen = False  # it was, once: its RAM may be shared
    ballooned = 0  # bytes that its balloon has
    told_every_s = 0

    async def _answer(self, command: str) -> None:
        raise NotImplementedError

    @property
    def ram_private(self) -> bool:
        raise NotImplementedError

    async def balloon(self, *, every_s: int) -> Balloon:
        await self._answer("balloon")
        if not self.plan.balloon:
            raise EngineError("No balloon device has been activated")
        self.told_every_s = every_s
        return Balloon(self.plan.ram_bytes - self.ballooned, self.guest_memory)

    async def set_balloon(self, left_bytes: int) -> None:
        await self._answer("set_balloon")
        if not self.ignores_balloon:
            self.ballooned = max(0, self.plan.ram_bytes - left_bytes)

    async def hold_balloon(self) -> None:
        await self._answer("hold_balloon")

    def ram_backing(self) -> dict[tuple[int, int], int]:
        return {(0, self.pid): self.plan.ram_bytes - self.ballooned}

    @property
    def reclaimable(self) -> bool:
        return not self.ram_private and not self.frozen
