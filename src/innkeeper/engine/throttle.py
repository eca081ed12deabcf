"""Limits of a disk's rates, as engines are told them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Throttle:
    """What one disk is held to: limits by name, such as read_bytes, total_ops_burst or op_size (a second's
    worth; lengths of bursts in seconds). Disks of the same `group` share them."""

    group: str
    limits: Mapping[str, int]
