"""What is done to a VM's balloon beside what the balloon controller does (agent/tune)."""

from __future__ import annotations

import contextlib

from innkeeper.agent.context import Context, Running
from innkeeper.errors import EngineError
from innkeeper.spec.instance import InstanceRecord


async def hold(running: Running) -> None:
    """Before a moment of it: a copy whose guest goes on filling its balloon would do so in RAM it shares. It
    inherits the balloon as it is, and takes from it when it needs to."""
    if running.plan is None or not running.plan.balloon or not running.balloon_asked:
        return
    with contextlib.suppress(EngineError):  # what hangs is noticed by what follows
        await running.machine.hold_balloon()
    running.balloon_runs += 1


async def empty(running: Running) -> None:
    """All of its memory is its guest's. Raises EngineError when it does not answer."""
    if running.plan is None or not running.plan.balloon or not running.balloon_asked:
        return
    running.balloon_runs += 1
    await running.machine.set_balloon(running.plan.ram_bytes)


async def fit_balloon(ctx: Context, record: InstanceRecord, running: Running) -> None:
    """At once, what the controller would come to in its time."""
    if record.spec.qos.memory.balloon == "never":
        await empty(running)
    ctx.balloon_news.set()
