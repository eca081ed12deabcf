"""What a fault left behind on this host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from innkeeper.agent.doctor.base import DoctorContext, Finding, check
from innkeeper.agent.leaks import Leak
from innkeeper.errors import InnkeeperError

_NAMED: Final = 3


@check("leaks")
async def check_leaks(context: DoctorContext) -> Finding:
    """Looks for layers, processes and directories that no instance, snapshot or moment uses."""
    if context.leaks is None:
        return Finding("leaks", "info", "not looked for: no daemon runs")
    try:
        found = await context.leaks.find()
    except InnkeeperError as error:
        return Finding("leaks", "warn", f"cannot be told: {error.message}", error.hint or "")
    if not found:
        return Finding("leaks", "ok", "every layer, process and directory has its owner")
    safe = any(leak.safe for leak in found)
    repair = "inn doctor --fix" if safe else f"look at it, then: rm -r '{found[0].path}'"
    return Finding("leaks", "warn", _told(found), repair, fixable=safe)


def _told(found: Sequence[Leak]) -> str:
    counts = ", ".join(f"{kind} ({count})" for kind, count in Counter(one.kind for one in found).items())
    named = "; ".join(str(leak) for leak in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"used by nobody: {counts}: {named}{more}"
