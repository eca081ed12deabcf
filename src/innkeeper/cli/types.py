"""Option types shared by commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from innkeeper.errors import BadRequest
from innkeeper.units import parse_duration

if TYPE_CHECKING:
    _FloatType = click.ParamType[float]
else:
    _FloatType = click.ParamType  # Generic only in newer versions.


class Duration(_FloatType):
    """Seconds, from `30`, `30s`, `5m` or `250ms`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_duration(value)
        except BadRequest as error:
            self.fail(str(error), param, ctx)


DURATION = Duration()


def timeout_option(help_: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--timeout", "timeout_s", type=DURATION, metavar="TIME", help=help_)
