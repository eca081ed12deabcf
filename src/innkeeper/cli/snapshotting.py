"""How far the snapshot that is being taken is, for a person at a terminal."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from innkeeper.cli.app import App
from innkeeper.cli.progress import watched
from innkeeper.units import human_size


def writing(app: App, name: str, stage: str) -> AbstractContextManager[None]:
    """While the body has a snapshot of `name` taken: how much of its memory is written."""

    def look() -> dict[str, Any] | None:
        taken = [one for one in app.instance(name).snapshots.list() if one["state"] == "taking"]
        return event(stage, name, taken[-1]) if taken else None

    return watched(look)


def event(stage: str, name: str, snapshot: dict[str, Any]) -> dict[str, Any]:
    """As of an image's build; without a share until it is known how much there is to write."""
    written, total = snapshot["written_bytes"], snapshot["total_bytes"]
    if not total:
        return {"stage": stage, "fraction": None, "detail": name}
    detail = f"{name}: {human_size(written)} of {human_size(total)}"
    return {"stage": stage, "fraction": written / total, "detail": detail}
