"""What CPU models and flags a QEMU offers, asked of a short-lived one without a machine (QAPI
query-cpu-definitions, query-cpu-model-expansion)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from innkeeper.drivers.run import Runner
from innkeeper.errors import EngineError, InnkeeperError

# 0.5 s for both rounds on an idle host.
DEADLINE_S: Final = 30.0
_OPEN: Final = ("max", "host", "base")
Properties = Mapping[str, Any]


@dataclass(frozen=True)
class Definition:
    """A named model: what it should have (QEMU's properties), and which of that cannot be given."""

    name: str
    unavailable: tuple[str, ...]
    properties: Properties
    alias_of: str = ""
    deprecated: bool = False


@dataclass(frozen=True)
class Told:
    """`best` are the properties of a CPU with everything that can be given."""

    best: Properties
    definitions: tuple[Definition, ...] = field(default_factory=tuple)


async def ask(runner: Runner, binary: str, accelerator: str) -> Told:
    """Everything at once. Raises EngineError when QEMU does not answer as it should, in time."""
    definitions, best = await _answers(
        runner, binary, accelerator, [_command("query-cpu-definitions"), _expansion("max")]
    )
    if isinstance(definitions, Mapping):
        raise EngineError(f"QEMU does not tell its CPU models: {definitions.get('desc')}")
    named = [one for one in definitions if one["name"] not in _OPEN]
    expansions = await _answers(runner, binary, accelerator, [_expansion(one["name"]) for one in named])
    return Told(
        _properties(best),
        tuple(
            Definition(
                one["name"],
                tuple(one.get("unavailable-features", ())),
                _properties(answer),
                one.get("alias-of", ""),
                one.get("deprecated", False),
            )
            for one, answer in zip(named, expansions, strict=True)
        ),
    )


def _properties(answer: Mapping[str, Any]) -> Properties:
    found: Properties = answer.get("model", {}).get("props", {})
    return found


def _command(name: str, **arguments: Any) -> dict[str, Any]:
    return {"execute": name, "arguments": arguments}


def _expansion(model: str) -> dict[str, Any]:
    return _command("query-cpu-model-expansion", type="full", model={"name": model})


async def _answers(
    runner: Runner, binary: str, accelerator: str, commands: list[dict[str, Any]]
) -> list[Any]:
    """The answers of a QEMU that is told all commands at once and then to quit; errors as their objects."""
    told = [_command("qmp_capabilities"), *commands, _command("quit")]
    argv = [binary, "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-machine", "none", "-accel", accelerator, "-qmp", "stdio"]
    try:
        ended = await runner.run(
            argv, stdin="\n".join(map(json.dumps, told)).encode() + b"\n", deadline_s=DEADLINE_S
        )
        messages = [json.loads(line) for line in ended.text.splitlines()]
    except (InnkeeperError, ValueError) as error:
        raise EngineError(f"QEMU does not tell its CPU models: {error}") from error
    answers = [one.get("return", one.get("error")) for one in messages if "return" in one or "error" in one]
    if len(answers) < len(commands) + 1:
        raise EngineError("QEMU ended before it had told its CPU models", hint=f"try: {binary} -cpu help")
    return answers[1 : len(commands) + 1]
