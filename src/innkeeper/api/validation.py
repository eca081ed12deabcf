"""What is wrong with a request, in one line of our words with the place."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel

from innkeeper.api.bodies import ApplyBody, CreateBody
from innkeeper.errors import BadRequest, SpecError
from innkeeper.spec.base import allowed_by
from innkeeper.spec.instance import InstanceUpdate

MAX_ERRORS: Final = 10
# The bodies in which a misspelt field is worth a guess at what was meant.
_GUESSABLE: Final[tuple[type[BaseModel], ...]] = (CreateBody, ApplyBody, InstanceUpdate)
_SCALARS: Final = (str, int, float, bool)


def as_bad_request(errors: Sequence[Mapping[str, Any]]) -> BadRequest:
    """The errors of pydantic as ours: SpecError for a body, BadRequest for a parameter."""
    told = [_told(error) for error in errors[:MAX_ERRORS]]
    first, hint = told[0][1], told[0][2]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    details: dict[str, Any] = {
        "field": told[0][0],
        "errors": [{"field": path, "message": message} for path, message, _ in told],
    }
    error = SpecError if errors[0]["loc"][:1] == ("body",) else BadRequest
    return error(first + more, hint=hint, details=details)


def _told(error: Mapping[str, Any]) -> tuple[list[str], str, str]:
    """Path, message and hint of one error."""
    path = [str(part) for part in error["loc"][1:]]
    place, kind, ctx = ".".join(path), str(error["type"]), error.get("ctx") or {}
    message = str(error["msg"])
    if kind == "json_invalid":
        return [], f"The body is not JSON: {ctx.get('error', message)} at position {place}", ""
    if kind == "extra_forbidden":
        return path, f"Unknown field {place}", _meant(path)
    if kind == "missing":
        return path, f"{place} is missing" if place else "The request has no body", ""
    if kind == "value_error":
        text = message.removeprefix("Value error, ")
        return path, f"{place}: {text}" if place else text, ""
    if path and kind == "string_pattern_mismatch":
        what = "name" if path[-1] == "name" else place
        return path, f"Not a valid {what}: {str(error.get('input'))[:60]!r}", allowed_by(ctx["pattern"])
    if kind in ("model_attributes_type", "model_type", "dict_type"):
        return path, f"{place or 'The body'} should be an object with fields", ""
    text = message.replace("Input should", "should").replace("String should", "should")
    given = error.get("input")
    if isinstance(given, _SCALARS):
        text += f", not {str(given)[:60]!r}"
    return path, f"{place} {text}" if text.startswith("should") else f"{place}: {text}", ""


def _meant(path: Sequence[str]) -> str:
    """The fields whose names are close to an unknown one."""
    for model in _GUESSABLE:
        known = _fields_at(model, path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=2, cutoff=0.6)
        if close:
            return f"did you mean {' or '.join(close)}?"
    known = _fields_at(_GUESSABLE[0], path[:-1])
    return f"it knows: {', '.join(known)}" if known and len(path) > 1 else ""


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The names of the fields at a place of a model; empty if there is no model there."""
    for part in path:
        if part.isdigit():
            continue  # an element of a list: its model is the one its field's annotation leads to
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as ``tuple[Disk, ...]`` or ``Cpu | None``."""
    if not typing.get_args(annotation):
        return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    for argument in typing.get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None
