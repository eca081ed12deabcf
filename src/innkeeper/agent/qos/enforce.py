"""Write what each VM is to have into its control group; the one place that does.

What that is is decided part by part, of all VMs at once, by the functions in `PARTS`: each says for every VM
that runs, or is about to, which settings its group should have. Written is only what differs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from innkeeper.agent.context import Context
from innkeeper.drivers.cgroup import Group
from innkeeper.drivers.cgroupvalues import Setting
from innkeeper.errors import InnkeeperError

log = logging.getLogger("innkeeper.qos")

# uid -> settings, and () for one that needs none
Decide = Callable[[Context], Mapping[str, Sequence[Setting]]]
PARTS: Final[dict[str, Decide]] = {}


def enforce(ctx: Context) -> dict[str, dict[str, str]]:
    """uid -> part -> why it is not in force, or empty. Never raises."""
    found: dict[str, dict[str, str]] = {}
    for part, decide in PARTS.items():
        for uid, settings in decide(ctx).items():
            found.setdefault(uid, {})[part] = _written(ctx.cgroups.get(uid), settings)
    return found


def _written(group: Group | None, settings: Sequence[Setting]) -> str:
    if not settings:
        return ""
    if group is None:
        return "it has no control group"
    try:
        return "" if group.write(*settings) else "its control group was removed"
    except InnkeeperError as error:
        return error.message
