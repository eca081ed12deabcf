"""One contract, every back-end: the fixture `store` runs a check on a fresh store of each kind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # tests/, for `helpers`

from store_harness import Harness


@pytest.fixture(params=["memory", "sqlite", "faulty"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    return Harness(request.param, tmp_path)
