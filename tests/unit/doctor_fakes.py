"""A host of a few files, and programs that answer from a table, for the tests of the doctor."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from innkeeper.agent.doctor import DoctorContext, Finding, examine
from innkeeper.drivers.run import Finished, missing_program


class FakeRunner:
    """Answers programs from a table: bytes are its output, an error is raised, a function is asked."""

    def __init__(self, answers: Mapping[str, Any] | None = None) -> None:
        self.answers = dict(answers or {})
        self.calls: list[tuple[str, ...]] = []

    async def run(self, argv: Sequence[str], **options: Any) -> Finished:
        self.calls.append(tuple(argv))
        answer = self.answers.get(os.path.basename(argv[0]), missing_program(argv[0]))
        if callable(answer):
            answer = answer(tuple(argv))
        if isinstance(answer, Exception):
            raise answer
        return Finished(tuple(argv), 0, answer, b"")

    def spawn(self, argv: Sequence[str], **options: Any) -> int:
        raise AssertionError("no check starts a program that outlives it")


def context(root: Path, runner: Any = None, **changes: Any) -> DoctorContext:
    settings: dict[str, Any] = {
        "root": root,
        "uid": 0,
        "user": "ada",
        "find": lambda name: None,
        "environ": {},
        "kvm_device": str(root / "dev/kvm"),
    }
    return DoctorContext(runner or FakeRunner(), root / "state", **(settings | changes))


def look(name: str, where: DoctorContext) -> Finding:
    (finding,) = asyncio.run(examine(where, {name}))
    assert finding.name == name
    assert "\n" not in finding.detail
    return finding


def put(root: Path, name: str, text: str = "") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def refuse(number: int) -> Callable[..., Any]:
    def function(*args: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return function
