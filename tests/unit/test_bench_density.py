"""The arithmetic of the density benchmark."""

from __future__ import annotations

import pytest
from bench.density import WORKING_SET, after_merging, carried, rollup_bytes, samples

from innkeeper.units import GiB, MiB

ROLLUP = """55d0-7ffd ---p 00000000 00:00 0    [rollup]
Rss:              204800 kB
Pss:               51200 kB
Shared_Dirty:     153600 kB
Private_Clean:       100 kB
Private_Dirty:     20000 kB
Swap:               3000 kB
SwapPss:             300 kB
Private_Hugetlb:       0 kB
"""


@pytest.mark.parametrize(
    ("capacity", "shared", "each", "guaranteed", "expected"),
    [
        (GiB, 0, 64 * MiB, 0, 16),
        (GiB, 512 * MiB, 64 * MiB, 0, 8),
        (GiB, 0, 10 * MiB, 64 * MiB, 16),  # it may want what it was promised at any time
        (GiB, 0, 100 * MiB, 64 * MiB, 10),
        (GiB, 2 * GiB, 64 * MiB, 0, 0),
    ],
)
def test_how_many_fit(capacity: int, shared: int, each: int, guaranteed: int, expected: int) -> None:
    assert carried(capacity, shared, each, guaranteed) == expected


def test_what_was_merged_is_spread_over_all() -> None:
    assert after_merging(40 * MiB, 100 * MiB, 10) == 30 * MiB
    assert after_merging(4 * MiB, 100 * MiB, 10) == 0


def test_private_pages_are_also_those_in_swap() -> None:
    assert rollup_bytes(ROLLUP) == 20_400 * 1024


def test_samples() -> None:
    found = {one.name: one.values for one in samples([30 * MiB, 50 * MiB], 20 * MiB, 4 * GiB, 96 * MiB)}
    assert found["density.private"] == [30, 50] and found["density.private-merged"] == [30]
    assert found["density.forks"] == [100] and found["density.forks-merged"] == [133]
    (most,) = {one.name: one.values for one in samples([MiB], 0, GiB, 0)}["density.forks"]
    assert most == GiB // WORKING_SET
