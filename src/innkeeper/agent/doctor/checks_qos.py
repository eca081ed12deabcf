"""Whether VMs can be given shares, reservations and limits here."""

from __future__ import annotations

from typing import Final

from innkeeper.agent.doctor.base import DoctorContext, Finding, Verdict, check
from innkeeper.agent.qos import disk
from innkeeper.drivers.cgrouptree import how_to_get
from innkeeper.drivers.cgroupvalues import Controller

# Shares, reservation and limit of each.
_WHAT: Final[dict[Controller, str]] = {"cpu": "CPU time", "memory": "memory"}


@check("qos")
def check_qos(context: DoctorContext) -> Finding:
    """What the daemon found when it started, by making control groups (drivers/cgroup.py)."""
    if context.cgroups is None:
        return Finding("qos", "info", "not known: no daemon runs")
    why = context.cgroups.why_not
    refused = {what: why(name) for name, what in _WHAT.items()}
    lacks = refused | {"shares of disks": why("io") or disk.why_not(context.cgroups, [context.state_dir])}
    kept = [*(what for what, reason in lacks.items() if not reason), "limits of disks"]
    detail = f"kept: {', '.join(kept)}"
    detail += "".join(f"; not {what}: {reason}" for what, reason in lacks.items() if reason)
    if not any(refused.values()):
        return Finding("qos", "ok", detail)
    verdict: Verdict = "warn" if context.privileged else "info"
    return Finding("qos", verdict, detail, how_to_get(context.privileged, context.root))
