"""The ratios of the lab's benchmark."""

from __future__ import annotations

from bench.lab import RATIOS, ratios
from bench.lib.sample import Sample


def test_medians_are_divided_where_both_were_measured() -> None:
    samples = [
        Sample("lab.boot-npt", "ms", [100, 90, 500]),
        Sample("lab.boot-shadow", "ms", [200, 210, 150]),
        Sample("lab.fork-npt", "ms", [0.0]),
        Sample("lab.fork-shadow", "ms", [5]),
    ]
    (found,) = ratios(samples)
    assert (found.name, found.unit, list(found.values)) == ("lab.shadow-boot", "x", [2.0])
    assert "/" in found.note


def test_every_ratio_says_what_is_divided_by_what() -> None:
    assert all("/" in note for _, _, note in RATIOS.values())
