"""Bar charts as SVG: the median of each sample, and a line from the smallest to the largest value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from bench.lib.sample import Sample

_BAR = 18
_ROW = 30
_LABELS = 230
_CHART = 460
_NUMBERS = 130
_TOP = 44
_COLOURS = ("#3b6ea5", "#c07a2c", "#5a8f4e", "#8a5aa0", "#a34a4a")


def chart(title: str, samples: Sequence[Sample]) -> str:
    """One bar for each sample; all of one unit. Those without values have a row without a bar."""
    top = max((max(one.values) for one in samples if one.values), default=0) or 1.0
    height = _TOP + _ROW * len(samples) + 10
    width = _LABELS + _CHART + _NUMBERS
    unit = samples[0].unit if samples else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="10" y="24" font-size="16" font-weight="bold">{escape(title)} ({escape(unit)})</text>',
    ]
    for row, sample in enumerate(samples):
        parts += _row(sample, _TOP + row * _ROW, _CHART / top, _COLOURS[row % len(_COLOURS)])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(sample: Sample, y: int, scale: float, colour: str) -> list[str]:
    middle = y + _BAR / 2
    label = sample.name.partition(".")[2] or sample.name
    parts = [f'<text x="{_LABELS - 8}" y="{middle + 4:g}" text-anchor="end">{escape(label)}</text>']
    if not sample.values:
        return parts
    low, high = (_LABELS + value * scale for value in (min(sample.values), max(sample.values)))
    parts += [
        f'<rect x="{_LABELS}" y="{y}" width="{sample.p50 * scale:.1f}" height="{_BAR}" fill="{colour}">'
        f"<title>{escape(sample.note or sample.name)}</title></rect>",
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle:g}" y2="{middle:g}" stroke="black"/>',
        f'<text x="{high + 8:.1f}" y="{middle + 4:g}">{sample.p50:.3g}</text>',
    ]
    return parts


def write_charts(directory: Path, stem: str, samples: Sequence[Sample]) -> list[Path]:
    """A chart for each benchmark and unit: DIRECTORY/STEM-BENCHMARK-UNIT.svg."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.name.partition(".")[0], sample.unit), []).append(sample)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for (benchmark, unit), members in groups.items():
        word = "".join(char if char.isalnum() else "-" for char in unit)
        path = directory / f"{stem}-{benchmark}-{word}.svg"
        path.write_text(chart(benchmark, members))
        written.append(path)
    return written
