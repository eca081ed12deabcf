"""How the limits of a disk are shown to people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from innkeeper.units import format_ops, format_rate, format_size


def limits_shown(limits: Mapping[str, Any], *, shared: bool = False) -> str:
    """`50MiB/s read (100MiB/s for 10s), 500/s total, shared`; empty without limits. Values as the spec prints
    them, or numbers."""
    found = list(_each(limits))
    if limits.get("op_size"):
        size = limits["op_size"]
        found.append(f"counted by {size if isinstance(size, str) else format_size(size)}")
    return ", ".join([*found, "shared"] if found and shared else found)


def _each(limits: Mapping[str, Any]) -> Iterator[str]:
    for unit, form in (("bytes", format_rate), ("ops", format_ops)):
        for direction in ("total", "read", "write"):
            name = f"{direction}_{unit}"
            if (rate := limits.get(name)) is None:
                continue
            text = f"{_text(rate, form)} {direction}"
            if (burst := limits.get(f"{name}_burst")) is not None:
                length = limits.get(f"{name}_burst_length") or 1
                text += f" ({_text(burst, form)} for {str(length).removesuffix('s')} s)"
            yield text


def _text(value: Any, form: Any) -> str:
    return value if isinstance(value, str) else str(form(value))
