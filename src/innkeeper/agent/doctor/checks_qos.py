"""Whether VMs can be given shares, reservations and limits here."""

from __future__ import annotations

from typing import Final

from innkeeper.agent.doctor.base import DoctorContext, Finding, Verdict, check
from innkeeper.agent.qos import disk
from innkeeper.drivers.cgroup import how_to_get
from innkeeper.drivers.cgroupvalues import Controller

_WHAT: Final[dict[Controller, str]] = {"cpu": "CPU time", "memory": "memory"}


@check("qos")
def check_qos(context: DoctorContext) -> Finding:
    """What the daemon found when it started, by making control groups (drivers/cgroup.py)."""
    if context.cgroups is None:
        return Finding("qos", "info", "not known: no daemon runs")
    why = context.cgroups.why_not
    works = [what for name, what in _WHAT.items() if not why(name)]
    refused = [f"{what}: {why(name)}" for name, what in _WHAT.items() if why(name)]
    detail = f"shares, reservations and limits are kept of: {', '.join(works) or 'nothing'}"
    no_weights = why("io") or disk.why_not(context.cgroups, [context.state_dir])
    detail += f"; limits of disks; {'no ' if no_weights else ''}shares of disks"
    detail += f" ({no_weights})" if no_weights else ""
    if not refused:
        return Finding("qos", "ok", detail)
    verdict: Verdict = "warn" if context.privileged else "info"
    return Finding("qos", verdict, f"{detail}; not of {'; '.join(refused)}", how_to_get(context.privileged))
