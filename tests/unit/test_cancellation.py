"""A loop that is cancelled just when what it waits for happens must end all the same: asyncio.wait_for of
Python 3.11 returns then as if nobody had cancelled (bpo-37658), and the daemon's stop would wait for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fakes.world import World
from helpers import run
from innkeeper.agent.pool import Pool
from innkeeper.agent.sampling.files import aside
from innkeeper.clock import SystemClock
from innkeeper.daemon.host import HeldLease, keep_record


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("loop", ["pool", "host", "aside"])
def test_cancelled_together_with_the_event(tmp_path: Path, loop: str, turns: int) -> None:
    async def scenario() -> None:
        event = asyncio.Event()
        nothing: Any = None
        if loop == "pool":
            world = World(tmp_path)
            world.ctx.spares.changed = event
            work: Any = Pool(world.ctx).run()
        elif loop == "host":
            work = keep_record(nothing, nothing, SystemClock(), HeldLease(0), event)
        else:
            work = _asides(event)
        task = asyncio.ensure_future(work)
        await asyncio.sleep(0.02)
        event.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=2.0)
        assert done, "it goes on"
        assert task.cancelled() or task.exception() is not None or loop == "aside"

    run(scenario())


async def _asides(event: asyncio.Event) -> None:
    await event.wait()
    while True:
        await aside(lambda: None, 5.0)
