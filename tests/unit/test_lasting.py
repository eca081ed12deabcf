"""Loops of the daemon outlive their bugs."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from helpers import FakeClock, run
from innkeeper.telemetry.lasting import FIRST_PAUSE_S, LONGEST_PAUSE_S, lasting


class Loop:
    """Fails as often as it is told to, after so long; then it goes on for ever."""

    def __init__(self, clock: FakeClock, failures: int, lives_s: float = 0.0) -> None:
        self.clock, self.failures, self.lives_s = clock, failures, lives_s
        self.begun: list[float] = []

    async def run(self) -> None:
        self.begun.append(self.clock.monotonic())
        if len(self.begun) > self.failures:
            await asyncio.Event().wait()
        await self.clock.sleep(self.lives_s)
        raise KeyError("a bug")


async def _pauses(loop: Loop) -> list[float]:
    task = asyncio.create_task(lasting("the loop", loop.run, loop.clock))
    for _ in range(5000):
        await asyncio.sleep(0)
        if len(loop.begun) > loop.failures:
            break
        loop.clock.advance(0.5)
    assert not task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled(), "who stops it has it stopped"
    starts = zip(loop.begun, loop.begun[1:], strict=False)
    return [later - earlier - loop.lives_s for earlier, later in starts]


def test_it_begins_again_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        found = await _pauses(Loop(FakeClock(), failures=8))
        assert found[0] == pytest.approx(FIRST_PAUSE_S, abs=1.0)
        assert found == sorted(found), "later each time"
        assert found[-1] == pytest.approx(LONGEST_PAUSE_S, abs=1.0)

    run(scenario())
    assert caplog.text.count("the loop failed, and begins again in") == 8 and "a bug" in caplog.text


def test_one_that_failed_long_ago_begins_again_at_once() -> None:
    async def scenario() -> None:
        found = await _pauses(Loop(FakeClock(), failures=5, lives_s=2 * LONGEST_PAUSE_S))
        assert max(found) <= FIRST_PAUSE_S + 1.0

    run(scenario())


def test_one_that_is_done_is_done() -> None:
    async def scenario() -> None:
        async def once() -> None:
            return None

        await lasting("the loop", once, FakeClock())

    run(scenario())
