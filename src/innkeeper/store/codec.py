"""Values of the store as models and back: JSON, checked on the way in."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError

from innkeeper.errors import SpecError, StoreCorrupt
from innkeeper.spec.base import Model
from innkeeper.store.kv import MAX_VALUE_BYTES, KeyValue

M = TypeVar("M", bound=Model)


def encode(record: Model) -> bytes:
    """The value of a record. Raises SpecError when it is too large for one."""
    value = record.model_dump_json().encode()
    if len(value) > MAX_VALUE_BYTES:
        raise SpecError(
            f"Too large: {len(value)} bytes where at most {MAX_VALUE_BYTES} can be kept",
            hint="shorten user_data or the labels",
        )
    return value


def decode(model: type[M], kv: KeyValue) -> M:
    """The record of a value. Raises StoreCorrupt naming the key."""
    try:
        return model.model_validate_json(kv.value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreCorrupt(
            f"The value of {kv.key} in the store is damaged: {place + ': ' if place else ''}{first['msg']}",
            hint="restore the state directory from a backup, or remove this one entry",
            details={"key": kv.key},
        ) from None
