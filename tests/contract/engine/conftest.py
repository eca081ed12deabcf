"""One contract, two engines: the fixture `play` runs a scenario on the fake and on the real QEMU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from engine_harness import Bench, FakeBench, QemuBench, Scenario

from helpers import run
from vms.daemon import short_directory


@pytest.fixture(params=["fake", pytest.param("qemu", marks=pytest.mark.vm)])
def play(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    kind: type[Bench] = FakeBench if request.param == "fake" else QemuBench

    def play_it(scenario: Scenario) -> None:
        run(_played(kind, scenario))

    return play_it


@pytest.fixture
def play_qemu() -> Callable[[Scenario], None]:
    return lambda scenario: run(_played(QemuBench, scenario))


async def _played(kind: type[Bench], scenario: Scenario) -> None:
    root: Path = short_directory()
    bench = kind(root)
    try:
        await scenario(bench)
        await bench.check_nothing_left()
    finally:
        await bench.close()
