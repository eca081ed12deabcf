"""What became of each test, from pytest's JUnit file: pure."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Result:
    """One test. `why`: its first line of complaint; `noted`: what it recorded, by name."""

    name: str
    outcome: Outcome
    seconds: float
    why: str = ""
    noted: dict[str, str] = field(default_factory=dict)


def read_junit(text: str) -> list[Result]:
    """The results in a file that pytest wrote with --junitxml. Raises ValueError for anything else."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not a JUnit file: {error}") from None
    return [_result(case) for case in root.iter("testcase")]


def _result(case: ElementTree.Element) -> Result:
    outcome: Outcome = "passed"
    why = ""
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            outcome = "skipped" if kind == "skipped" else "failed"
            why = (found.get("message") or "").partition("\n")[0]
            break
    module = case.get("classname", "").rpartition(".")[2]
    noted = {one.get("name", ""): one.get("value", "") for one in case.iter("property")}
    return Result(f"{module}: {case.get('name', '')}", outcome, float(case.get("time", "0")), why, noted)


def table(results: Sequence[Result]) -> str:
    """For people: test, outcome, seconds, and below it what it noted or complained of; the sum at the end."""
    width = max((len(_words(one.name)) for one in results), default=0)
    lines = []
    for one in results:
        lines.append(f"{_words(one.name):{width}}  {one.outcome:7}  {one.seconds:6.1f} s")
        lines += [f"    {name} = {value}" for name, value in one.noted.items()]
        if one.why:
            lines.append(f"    {one.why[:160]}")
    counts = [
        f"{sum(one.outcome == kind for one in results)} {kind}" for kind in ("passed", "failed", "skipped")
    ]
    return "\n".join(
        [*lines, "", f"{', '.join(counts)}; {sum(one.seconds for one in results):.0f} s of tests"]
    )


def status(results: Sequence[Result]) -> int:
    """0 when something was tested and nothing failed."""
    passed = any(one.outcome == "passed" for one in results)
    return 0 if passed and all(one.outcome != "failed" for one in results) else 1


def _words(name: str) -> str:
    """`test_kvm_lab: test_exits_are_counted[npt]` -> `kvm: exits are counted [npt]`."""
    module, _, test = name.partition(": ")
    module = module.removeprefix("test_").removesuffix("_lab")
    words = test.removeprefix("test_").replace("_", " ")
    return f"{module}: " + re.sub(r"\[(.*)\]$", r" [\1]", words)
