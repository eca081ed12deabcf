"""What a rule says about a verb before it is carried out.

A rule yields findings. The verb raises the error of the first that blocks it; `inn explain` shows them
all. So there is one rule for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from innkeeper.errors import InnkeeperError

Verdict = Literal["ok", "warn", "block"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`fix` is what to do about it; `error` is what the verb raises when it is blocked by this."""

    verdict: Verdict
    what: str
    fix: str = ""
    error: InnkeeperError | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "what": self.what, "fix": self.fix}


def ok(what: str) -> Finding:
    return Finding("ok", what)


def warn(what: str, fix: str = "") -> Finding:
    return Finding("warn", what, fix)


def block(error: InnkeeperError) -> Finding:
    return Finding("block", error.message, error.hint, error)


def refuse(findings: Iterable[Finding]) -> None:
    """What a verb does with the findings of its rules: raise the first that blocks it."""
    for finding in findings:
        if finding.error is not None:
            raise finding.error


def asked(rule: Callable[[], object], otherwise: str) -> Iterator[Finding]:
    """The finding of a rule that raises, without the raising: what blocks, or `otherwise`."""
    try:
        rule()
    except InnkeeperError as error:
        yield block(error)
    else:
        yield ok(otherwise)
