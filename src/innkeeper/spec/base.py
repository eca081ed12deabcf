"""What all spec models share: unknown fields refused, sizes and names validated once."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, StringConstraints

from innkeeper.errors import BadRequest
from innkeeper.units import format_size, parse_size

_ALLOWED: dict[str, str] = {}


def worded(pattern: str, allowed: str) -> str:
    """The pattern of a field, with what it allows in words for people who got it wrong."""
    _ALLOWED[pattern] = allowed
    return pattern


def allowed_by(pattern: str) -> str:
    """What a pattern allows, in words; empty if nobody gave any."""
    return _ALLOWED.get(pattern, "")


class Model(BaseModel):
    """Frozen, and strict about fields: a misspelt one is an error, never silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _size(value: Any) -> int:
    try:
        return parse_size(value)
    except BadRequest as error:
        raise ValueError(str(error)) from None
    except TypeError:
        raise ValueError(f"Not a size: {value!r}; write it like 512MiB") from None


NAME_WORDS: Final = "use 1 to 63 lower-case letters, digits and dashes, not starting or ending with a dash"
# A name becomes a host name (RFC 1123 label), a file name and part of a QEMU option: no dots, no commas.
NAME_PATTERN: Final = worded(r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$", NAME_WORDS)

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Size = Annotated[int, BeforeValidator(_size), PlainSerializer(format_size, return_type=str, when_used="json")]


def check_name(name: str, what: str = "instance") -> str:
    """The name itself, or BadRequest that says what a name may be."""
    if not re.match(NAME_PATTERN, name):
        raise BadRequest(
            f"Not a valid {what} name: {name!r}",
            hint=NAME_WORDS,
        )
    return name
