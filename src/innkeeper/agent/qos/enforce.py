"""Write what each VM is to have into its control group; the one place that does.

What that is is decided part by part, of all VMs at once (agent/qos/parts.py). Written is only what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from innkeeper.agent.context import Context
from innkeeper.agent.qos.parts import PARTS
from innkeeper.drivers.cgroup import Group
from innkeeper.drivers.cgroupvalues import Setting
from innkeeper.errors import InnkeeperError


def enforce(
    ctx: Context, only: str | None = None, parts: Iterable[str] = tuple(PARTS)
) -> dict[str, dict[str, str]]:
    """uid -> part -> why it is not in force, or empty. Never raises. With `only` the others, whose weights
    may follow from this one's, are left for later."""
    found: dict[str, dict[str, str]] = {}
    for part in parts:
        for uid, settings in PARTS[part](ctx).items():
            if only in (None, uid):
                found.setdefault(uid, {})[part] = _written(ctx.cgroups.get(uid), settings)
    return found


def _written(group: Group | None, settings: Sequence[Setting] | str) -> str:
    if isinstance(settings, str):
        return settings
    if not settings:
        return ""
    if group is None:
        return "it has no control group"
    try:
        return "" if group.write(*settings) else "its control group was removed"
    except InnkeeperError as error:
        return error.message
