"""In which settings two specs differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from innkeeper.spec.instance import InstanceSpec


def differences(old: InstanceSpec, new: InstanceSpec) -> list[str]:
    """The paths that differ, such as `cpu.count` and `disks.0.size`, in the order of the spec."""
    return list(_differ("", old.model_dump(mode="json"), new.model_dump(mode="json")))


def _differ(path: str, old: Any, new: Any) -> Iterator[str]:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict) and path != "labels":
        pairs = [(key, old.get(key), new.get(key)) for key in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(place), *both) for place, both in enumerate(zip(old, new, strict=True))]
    else:
        yield path
        return
    for key, before, after in pairs:
        yield from _differ(f"{path}.{key}" if path else key, before, after)
