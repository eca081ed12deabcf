"""When a moment is closed: by the last who uses it, and never while its parent is still being frozen."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import run
from innkeeper.agent.moments import Moments, Taken
from innkeeper.errors import Failed

TOKEN = "0123456789abcdef"


def _taken(tmp_path: Path) -> Taken:
    (tmp_path / TOKEN).mkdir()
    return Taken(None, None, {}, tmp_path / TOKEN)


def test_copies_that_give_up_do_not_close_it_under_its_parent(tmp_path: Path) -> None:
    async def story() -> None:
        moments, taken = Moments(), _taken(tmp_path)
        moments.prepare("parent", TOKEN, taken, {"a", "b"})
        for copy in ("a", "b"):
            moments.release(TOKEN, copy)
        assert taken.directory.exists() and moments.tokens() == {TOKEN}
        moments.taken_for(TOKEN)
        assert not taken.directory.exists() and moments.tokens() == set()

    run(story())


def test_the_last_copy_closes_it(tmp_path: Path) -> None:
    async def story() -> None:
        moments, taken, kicked = Moments(), _taken(tmp_path), list[str]()
        moments.kick = kicked.append
        moments.prepare("parent", TOKEN, taken, {"a", "b"})
        moments.taken_for(TOKEN)
        moments.release(TOKEN, "a")
        assert taken.directory.exists() and kicked == []
        moments.release(TOKEN, "b")
        assert not taken.directory.exists() and kicked == ["parent"]

    run(story())


@pytest.mark.parametrize("before", [True, False])
def test_one_that_could_not_be_taken_is_closed_by_whoever_is_last(tmp_path: Path, before: bool) -> None:
    async def story() -> None:
        moments, taken = Moments(), _taken(tmp_path)
        moments.prepare("parent", TOKEN, taken, {"a"})
        if before:
            moments.release(TOKEN, "a")
        moments.fail("parent", TOKEN, Failed("no room"))
        if not before:
            assert moments.tokens() == {TOKEN}
            moments.release(TOKEN, "a")
        assert not taken.directory.exists() and moments.tokens() == set()

    run(story())
