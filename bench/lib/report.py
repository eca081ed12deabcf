"""The table at the end, and the JSON it can be made from again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.lib.facts import one_line
from bench.lib.sample import Sample, judge

TITLES = ("sample", "unit", "n", "p50", "p99", "min", "max", "budget", "is", "verdict")


def table(samples: Sequence[Sample]) -> str:
    by_name = {sample.name: sample for sample in samples}
    rows = [TITLES, *(_row(sample, by_name) for sample in samples)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(TITLES))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, 1, 7, 9) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    notes = [f"  {sample.name}: {sample.note}" for sample in samples if sample.note]
    return "\n".join([*lines, *(["", "notes", *notes] if notes else [])])


def _row(sample: Sample, by_name: Mapping[str, Sample]) -> tuple[str, ...]:
    verdict = judge(sample, by_name)
    numbers = (sample.p50, sample.p99, min(sample.values, default=0), max(sample.values, default=0))
    return (
        sample.name,
        sample.unit,
        str(len(sample.values)),
        *(_number(value) for value in numbers),
        sample.budget.text() if sample.budget else "",
        f"{verdict.ratio:.2f} x" if verdict.ratio is not None else "",
        verdict.text,
    )


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def write(
    directory: Path, facts: Mapping[str, Any], samples: Sequence[Sample], failed: Mapping[str, str]
) -> Path:
    """One file per run, named after its time and revision."""
    directory.mkdir(parents=True, exist_ok=True)
    by_name = {sample.name: sample for sample in samples}
    stamp = str(facts["at"]).replace(":", "").replace("+0000", "Z")
    path = directory / f"{stamp}-{facts['revision'] or 'unknown'}.json"
    content = {
        "facts": dict(facts),
        "samples": [{**one.to_dict(), "verdict": judge(one, by_name).text} for one in samples],
        "failed": dict(failed),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def head(facts: Mapping[str, Any]) -> str:
    return one_line(dict(facts))
