"""`inn doctor`: tries what Innkeeper needs from this host, says what is wrong, and repairs some of it.

    findings = await examine(DoctorContext(runner, state_dir))
    results = await fix(findings, context)

Add a check as a function with `@check("name")` in the module of its theme; the report, `--json` and
`--fix` need no other change.
"""

from __future__ import annotations

from collections.abc import Collection

# Imported for their checks; their order is the order of the report.
from innkeeper.agent.doctor import (  # noqa: F401
    checks_cpu,
    checks_host,
    checks_leaks,
    checks_memory,
    checks_net,
    checks_qos,
    checks_tools,
)
from innkeeper.agent.doctor.base import CHECKS, DoctorContext, Finding, run_checks
from innkeeper.agent.doctor.repairs import FixResult, fix
from innkeeper.errors import NotFound

__all__ = ["CHECKS", "DoctorContext", "Finding", "FixResult", "examine", "fix"]


async def examine(context: DoctorContext, only: Collection[str] = ()) -> list[Finding]:
    """Run all checks, or those named in `only`, at the same time: one finding each. Never hangs and
    never fails because of the host. Raises NotFound for a name there is no check for."""
    unknown = set(only) - CHECKS.keys()
    if unknown:
        raise NotFound(f"There is no check {min(unknown)!r}", hint=f"there are: {', '.join(CHECKS)}")
    return await run_checks(context, [one for one in CHECKS.values() if not only or one.name in only])
