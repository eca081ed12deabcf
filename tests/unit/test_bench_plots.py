"""Charts of benchmarks, and the program that misses the TLB."""

from __future__ import annotations

import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from bench.lib.plot import chart, write_charts
from bench.lib.sample import Sample
from bench.lib.walker import walker

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_the_medians_and_lines_go_from_least_to_most() -> None:
    samples = [Sample("lab.npt", "ms", [10, 20, 40]), Sample("lab.shadow", "ms", [80, 60, 40])]
    root = ElementTree.fromstring(chart("Paging", samples))
    bars = [float(one.get("width", "0")) for one in root.findall(f"{SVG}rect")[1:]]
    assert bars[1] == pytest.approx(3 * bars[0], rel=0.01)
    first, second = root.findall(f"{SVG}line")
    assert float(first.get("x2", "0")) == pytest.approx(float(second.get("x1", "0")))
    texts = [one.text for one in root.findall(f"{SVG}text")]
    assert texts[0] == "Paging (ms)" and "npt" in texts and "60" in texts


def test_any_text_and_no_values_make_a_chart() -> None:
    samples = [Sample("lab.<a & b>", "MiB/s", [], note='"<'), Sample("lab.zero", "MiB/s", [0.0])]
    root = ElementTree.fromstring(chart("<&>", samples))
    assert len(root.findall(f"{SVG}rect")) == 2  # the ground and one bar
    ElementTree.fromstring(chart("nothing", []))


def test_one_file_for_each_benchmark_and_unit(tmp_path: Path) -> None:
    samples = [
        Sample("a.x", "ms", [1]),
        Sample("a.y", "MiB/s", [1]),
        Sample("b.x", "ms", [1]),
        Sample("a.z", "ms", []),
    ]
    written = write_charts(tmp_path / "plots", "run", samples)
    assert sorted(path.name for path in written) == ["run-a-MiB-s.svg", "run-a-ms.svg", "run-b-ms.svg"]
    assert all(path.exists() for path in written)


@pytest.mark.parametrize("pages", ["small", "huge", "any"])
def test_the_walker_walks(tmp_path: Path, pages: str) -> None:
    def took(turns: int) -> float:
        program = tmp_path / f"walk-{pages}-{turns}"
        program.write_bytes(walker(8 << 20, turns, pages))  # type: ignore[arg-type]
        program.chmod(0o755)
        begun = time.perf_counter()
        assert subprocess.run([program], check=False).returncode == 0
        return time.perf_counter() - begun

    assert took(20_000_000) > took(0)


def test_the_walker_needs_a_span_it_can_mask() -> None:
    for span in (0, 1 << 20, 3 << 20):
        with pytest.raises(ValueError, match="power of two"):
            walker(span, 1, "any")
