"""The loop that has the host look for equal pages while that pays (drivers/ksm.py, tune/ksm.py)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from innkeeper.agent import sysfs
from innkeeper.agent.context import Context
from innkeeper.agent.tune import ksm as rules
from innkeeper.agent.tune import supply
from innkeeper.agent.tune.ksm import Seen, Tuning
from innkeeper.clock import Clock
from innkeeper.drivers.ksm import RUNNING, UNMERGING, Claim, Counters, Ksm, put_back
from innkeeper.errors import InnkeeperError, NoCapacity
from innkeeper.spec.overcommit import KsmMode, KsmReport
from innkeeper.units import human_size

log = logging.getLogger("innkeeper.ksm")


class Merging:
    """`run` until cancelled, then `close`. Turned on by somebody else, it is left to him: what we never
    changed we never put back."""

    def __init__(
        self, ksm: Ksm, claim: Claim, clock: Clock, mode: Callable[[], KsmMode], see: Callable[[], Seen]
    ) -> None:
        self._ksm, self._claim, self._clock = ksm, claim, clock
        self._mode, self._see = mode, see
        self._tuning = Tuning()
        self._trouble = ""
        self._cpu: float | None = None
        self._spent: tuple[float, float] | None = None  # when, and ksmd's CPU seconds then
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except OSError as error:  # a host that does not let us look
                log.warning("looking at KSM failed: %s", error)
            await self._clock.sleep(rules.INTERVAL_S)

    async def look(self) -> None:
        """One step."""
        async with self._turn:
            self._account()
            counters = self._ksm.read()
            if counters is None:
                return
            self._tuning = rules.step(self._tuning, self._see(), self._mode())
            try:
                self._apply(counters)
                self._trouble = ""
            except InnkeeperError as error:
                if error.message != self._trouble:  # once, not every ten seconds
                    log.warning("%s", error.message)
                self._trouble = error.message
                self._tuning = Tuning(why=error.message)

    def _apply(self, counters: Counters) -> None:
        wanted = self._tuning
        if not wanted.on:
            put_back(self._ksm, self._claim)
            return
        if not self._claim.held:
            if counters.run == RUNNING and self._claim.former() is None:
                return  # the administrator, ksmtuned
            self._ksm.refuse_unless_writable()
            if not self._claim.take(self._ksm.knobs()):
                return  # somebody else runs it: another daemon
        if not counters.advised and counters.pages_to_scan != wanted.pages:
            self._ksm.write("pages_to_scan", wanted.pages)
        if counters.sleep_ms != wanted.sleep_ms:
            self._ksm.write("sleep_millisecs", wanted.sleep_ms)
        if counters.run != RUNNING:
            self._ksm.write("run", RUNNING)

    def _account(self) -> None:
        now, spent = self._clock.monotonic(), self._ksm.cpu_seconds()
        if spent is None:
            self._cpu = self._spent = None
            return
        if self._spent is not None and now > self._spent[0]:
            self._cpu = round((spent - self._spent[1]) / (now - self._spent[0]), 4)
        self._spent = (now, spent)

    def refuse_unless_able(self) -> None:
        """Raises Unsupported where this daemon can turn nothing on, and nobody else has."""
        counters = self._ksm.read()
        if counters is not None and counters.run != RUNNING:
            self._ksm.refuse_unless_writable()

    async def unmerge(self) -> None:
        """Give every page back to its VM, for a host that is set to `never` while some are merged. Raises
        NoCapacity when there is no room for that: the kernel would end whoever asks for it."""
        async with self._turn:
            counters = self._ksm.read()
            if counters is None or not counters.saved_bytes or not self._ours(counters):
                return
            room = self._see().available_bytes
            if counters.saved_bytes > room * 0.9:
                raise NoCapacity(
                    f"Merged pages would take {human_size(counters.saved_bytes)} more, and "
                    f"{human_size(room)} is available",
                    hint="stop some VMs first, then set it again",
                )
            await asyncio.to_thread(self._ksm.write, "run", UNMERGING)

    def _ours(self, counters: Counters) -> bool:
        """What somebody else runs is his."""
        return self._claim.held or counters.run != RUNNING

    def report(self) -> KsmReport | None:
        counters = self._ksm.read()
        if counters is None:
            return None
        running = counters.run == RUNNING
        return KsmReport(
            running=running,
            by=("innkeeper" if self._claim.held or self._claim.former() else "others") if running else "",
            saved_bytes=counters.saved_bytes,
            profit_bytes=counters.profit_bytes,
            cpu=self._cpu,
            pages_to_scan=counters.pages_to_scan,
            why=self._tuning.why,
        )

    async def close(self) -> None:
        """What we changed is as it was before; what is merged stays so until it is written."""
        async with self._turn:
            try:
                if self._claim.held:
                    put_back(self._ksm, self._claim)
            except InnkeeperError as error:
                log.warning("KSM stays as it is: %s", error.message)
            self._claim.let_go()


def see(ctx: Context, root: Path = sysfs.HOST_ROOT) -> Seen:
    """What the rules go by, of this host and its VMs now."""
    memory = sysfs.meminfo(root)
    plans = [(running.plan, running.machine) for running in ctx.running.values()]
    return Seen(
        total_bytes=memory.get("MemTotal", 0),
        available_bytes=memory.get("MemAvailable", 0),
        mergeable_bytes=sum(
            plan.ram_bytes for plan, machine in plans if plan and plan.memory.merge and machine.ram_private
        ),
        memory_pressure=supply.pressure(root, "memory") or 0.0,
        cpu_pressure=supply.pressure(root, "cpu") or 0.0,
    )
