"""The doctor as the API calls it: examines, repairs on request, and says what was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from innkeeper.agent import facts as host_facts
from innkeeper.agent.doctor import DoctorContext, examine, fix
from innkeeper.agent.doctor.base import LeakFinder
from innkeeper.daemon.host import LocalHost
from innkeeper.drivers.cgroup import Cgroups
from innkeeper.drivers.run import Runner
from innkeeper.paths import Paths


class Doctor:
    """See api.deps.Doctor. What it finds about KVM and QEMU is what launches go by from then on."""

    def __init__(
        self, runner: Runner, paths: Paths, host: LocalHost, leaks: LeakFinder, cgroups: Cgroups
    ) -> None:
        self._runner, self._paths, self._host, self._leaks = runner, paths, host, leaks
        self._cgroups = cgroups

    async def __call__(self, *, fix: bool = False) -> Sequence[Mapping[str, Any]]:
        context = DoctorContext(
            self._runner,
            self._paths.state,
            kvm_cache=self._paths.kvm_verdict,
            leaks=self._leaks,
            cgroups=self._cgroups,
        )
        findings = await examine(context)
        outcomes: dict[str, dict[str, Any]] = {}
        if fix:
            outcomes = {one.name: one.to_dict() for one in await _fix(findings, context)}
            findings = await examine(context)
        self._host.facts = await host_facts.gather(self._runner, self._paths)
        return [
            {**finding.to_dict(), **({"fix": outcomes[finding.name]} if finding.name in outcomes else {})}
            for finding in findings
        ]


_fix = fix
