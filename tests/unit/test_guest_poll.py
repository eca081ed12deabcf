"""How often an agent is asked about a command."""

from __future__ import annotations

import asyncio

import pytest

from innkeeper.guest import poll


def test_a_silent_command_is_asked_about_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    pace = poll.Pace()

    def pauses(seconds: float) -> list[float]:
        """Those of the next so many seconds."""
        begin = len(slept)
        while sum(slept[begin:]) < seconds:
            asyncio.run(pace.pause())
        return slept[begin:]

    first = pauses(1.0)
    assert first[0] == poll.FIRST_S
    assert max(first) < 1.2 * poll.SLOWEST_S  # what is typed into is answered at once
    assert max(pauses(9.0)) < 2.5 * poll.SLOWEST_S
    assert pauses(60.0)[-1] == poll.SILENT_S
    pace.reset()
    assert pauses(0.001) == [poll.FIRST_S]
