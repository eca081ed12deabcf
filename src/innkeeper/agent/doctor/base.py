"""What a check is, and how it is kept from doing harm.

A check is one small function from a `DoctorContext` to a `Finding`, registered with `@check`. A
plain function runs in a daemon thread of its own, an async one in the event loop; either way it is
given up at its deadline, and whatever it raises becomes a finding. Nothing a host does can stop the
doctor from reporting on the rest.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

from innkeeper.agent import probes
from innkeeper.agent.leaks import Leak
from innkeeper.drivers.cgroup import Cgroups
from innkeeper.drivers.run import Runner, which
from innkeeper.engine.kvm import DEFAULT_DEVICE, user_name

Verdict = Literal["ok", "warn", "fail", "info"]

# Cancelled checks end the programs they started; the runner needs up to 4 s for a stubborn one.
CLEANUP_S: Final = 5.0


@dataclass(frozen=True)
class Finding:
    """`detail` is one line with the numbers; `repair` an exact command, or empty where there is
    none; `fixable` says that `inn doctor --fix`, as root, does it. `packages` are the Debian
    packages that would help."""

    name: str
    verdict: Verdict
    detail: str
    repair: str = ""
    fixable: bool = False
    packages: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class LeakFinder(Protocol):
    """What the agent knows of this host and a check cannot see (agent/leaks.py)."""

    async def find(self) -> Sequence[Leak]: ...

    async def remove(self) -> None: ...


@dataclass(frozen=True)
class DoctorContext:
    """What the checks look at. `root` is where /proc, /sys, /dev and /etc lie; `kvm_cache` is where
    the KVM verdict is stored for the daemon; `kvm_argv` replaces the probe's child (tests); `leaks` and
    `cgroups` are known where a daemon runs."""

    runner: Runner
    state_dir: Path
    root: Path = Path("/")
    uid: int = field(default_factory=os.geteuid)
    user: str = field(default_factory=user_name)
    find: Callable[[str], str | None] = which
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    kvm_device: str = DEFAULT_DEVICE
    kvm_cache: Path | None = None
    kvm_argv: Sequence[str] | None = None
    leaks: LeakFinder | None = None
    cgroups: Cgroups | None = None

    @property
    def privileged(self) -> bool:
        return self.uid == 0

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")


CheckFunction: TypeAlias = Callable[[DoctorContext], Finding | Awaitable[Finding]]


@dataclass(frozen=True)
class Check:
    name: str
    function: CheckFunction
    deadline_s: float


CHECKS: Final[dict[str, Check]] = {}


def check(name: str, *, deadline_s: float = 10.0) -> Callable[[CheckFunction], CheckFunction]:
    """Register a check; the order of registration is the order of the report."""

    def register(function: CheckFunction) -> CheckFunction:
        if name in CHECKS:
            raise ValueError(f"two checks are called {name}")
        CHECKS[name] = Check(name, function, deadline_s)
        return function

    return register


def missing_programs(
    context: DoctorContext, name: str, verdict: Verdict, packages: Mapping[str, str], why: str
) -> Finding | None:
    """The finding about those of `packages` (program -> Debian package) that are not installed."""
    absent = {program: package for program, package in packages.items() if not context.find(program)}
    if not absent:
        return None
    wanted = tuple(dict.fromkeys(absent.values()))
    return Finding(
        name,
        verdict,
        f"not installed: {', '.join(absent)} ({why})",
        f"apt-get install -y {' '.join(wanted)}",
        fixable=verdict in ("warn", "fail"),
        packages=wanted,
    )


async def run_checks(
    context: DoctorContext, checks: Sequence[Check], *, cleanup_s: float = CLEANUP_S
) -> list[Finding]:
    """All checks at once, one finding each, in order. Takes as long as the longest deadline plus
    `cleanup_s` at the very most."""
    tasks = [asyncio.create_task(_call(one, context), name=f"doctor {one.name}") for one in checks]
    try:
        return list(
            await asyncio.gather(*(_await(one, task) for one, task in zip(checks, tasks, strict=True)))
        )
    finally:
        # Given-up checks have been cancelled and are ending their programs; wait for that, but not
        # for one that will not end.
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=cleanup_s)


async def _call(one: Check, context: DoctorContext) -> Finding:
    if inspect.iscoroutinefunction(one.function):
        finding: Finding = await one.function(context)
        return finding
    result = await probes.in_daemon_thread(one.function, context)
    assert isinstance(result, Finding), f"{one.name} returned {result!r}"
    return result


async def _await(one: Check, task: asyncio.Task[Finding]) -> Finding:
    done, _ = await asyncio.wait({task}, timeout=one.deadline_s)
    if not done:
        task.cancel()
        return Finding(one.name, "fail", f"did not finish in {one.deadline_s:g} s")
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    if error is None:
        return task.result()
    text = " ".join(str(error).split()) or type(error).__name__
    return Finding(one.name, "fail", f"the check itself failed: {text}")
