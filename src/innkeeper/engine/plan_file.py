"""The plan a running QEMU was started with, kept beside its sockets, and in every snapshot: a copy must have
the same devices, whatever the spec or this daemon say meanwhile; and after a crash the next daemon must know
what is open."""

from __future__ import annotations

import os

from pydantic import TypeAdapter, ValidationError

from innkeeper.engine.base import LaunchPlan
from innkeeper.paths import RuntimeFiles, SnapshotFiles

_PLAN: TypeAdapter[LaunchPlan] = TypeAdapter(LaunchPlan)


def save(files: RuntimeFiles | SnapshotFiles, plan: LaunchPlan) -> None:
    draft = files.plan.with_suffix(".tmp")
    draft.write_bytes(_PLAN.dump_json(plan))
    os.replace(draft, files.plan)


def load(files: RuntimeFiles | SnapshotFiles) -> LaunchPlan | None:
    """None when there is none, or one that this version does not understand."""
    try:
        return _PLAN.validate_json(files.plan.read_bytes())
    except (OSError, ValidationError):
        return None
