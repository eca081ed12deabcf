"""`inn doctor --fix`: the repairs that destroy nothing and can be undone. As root, but for
what belongs to whoever runs the daemon.

Each is looked up by the name of the finding; packages go into one apt-get. What was done is judged
by running the check again, never by the exit status of the repair.
"""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from innkeeper.agent import probes
from innkeeper.agent.doctor.base import CHECKS, DoctorContext, Finding, run_checks
from innkeeper.agent.doctor.checks_memory import put_ksm_back
from innkeeper.errors import CommandFailed, Failed, InnkeeperError

# A slow mirror and a slow disk; apt-get itself gives up on a dead one sooner.
_APT_DEADLINE_S: Final = 600.0
_MODPROBE_DEADLINE_S: Final = 20.0
_APT_ENV: Final = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
_TUN_DEVICE: Final = os.makedev(10, 200)  # Documentation/admin-guide/devices.txt


@dataclass(frozen=True)
class FixResult:
    """`done`: the check is content now. `detail` says what was done, or why not."""

    name: str
    done: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Repair = Callable[[DoctorContext], Awaitable[None]]


async def fix(findings: Sequence[Finding], context: DoctorContext) -> list[FixResult]:
    """Repair the fixable ones among `findings`, one result each. A repair that fails stops no other;
    nothing is raised."""
    fixable = [one for one in findings if one.fixable]
    wanted = [one for one in fixable if context.privileged or one.name in _NO_ROOT]
    told = [
        FixResult(one.name, False, f"needs root: sudo sh -c {_quoted(one.repair)}")
        for one in fixable
        if one not in wanted
    ]
    failures: dict[str, str] = {}
    with_packages = [one for one in wanted if one.packages]
    if with_packages:
        packages = tuple(dict.fromkeys(name for one in with_packages for name in one.packages))
        failure = await _attempt(install(packages, context))
        failures |= {one.name: failure for one in with_packages if failure}
    for one in wanted:
        if one.packages:
            continue
        repair = REPAIRS.get(one.name)
        failure = await _attempt(repair(context)) if repair else "no repair is known"
        if failure:
            failures[one.name] = failure
    return [*told, *await _look_again(wanted, failures, context)]


async def _look_again(
    wanted: Sequence[Finding], failures: dict[str, str], context: DoctorContext
) -> list[FixResult]:
    again = [CHECKS[one.name] for one in wanted if one.name in CHECKS and one.name not in failures]
    now = {finding.name: finding for finding in (await run_checks(context, again) if again else [])}
    results = []
    for one in wanted:
        after = now.get(one.name)
        if after is None:
            results.append(FixResult(one.name, False, failures.get(one.name, "cannot be checked again")))
        elif after.verdict == "ok" or (after.verdict == "info" and not after.fixable):
            results.append(FixResult(one.name, True, after.detail))
        else:
            results.append(FixResult(one.name, False, f"tried ({one.repair}), but still: {after.detail}"))
    return results


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"


async def _attempt(work: Awaitable[None]) -> str:
    """Empty if it went through, else the reason in one line."""
    try:
        await work
    except InnkeeperError as error:
        return error.message
    except Exception as error:
        # Whatever it was, the other repairs go on.
        return " ".join(str(error).split()) or type(error).__name__
    return ""


async def install(packages: Sequence[str], context: DoctorContext) -> None:
    """apt-get install, with one `apt-get update` if the first try fails (stale or no lists)."""
    command = [
        "apt-get", "install", "-y", "--no-install-recommends",
        "-o", "DPkg::Lock::Timeout=60", "--", *packages,
    ]  # fmt: skip
    run = context.runner.run
    try:
        await run(command, deadline_s=_APT_DEADLINE_S, env=_APT_ENV)
    except CommandFailed:
        await run(["apt-get", "update"], deadline_s=_APT_DEADLINE_S, env=_APT_ENV)
        await run(command, deadline_s=_APT_DEADLINE_S, env=_APT_ENV)


def _modprobe(*names: str) -> Repair:
    """Load the first of `names` that loads."""

    async def load(context: DoctorContext) -> None:
        failure: InnkeeperError = Failed("no module to load")
        for name in names:
            try:
                await context.runner.run(["modprobe", name], deadline_s=_MODPROBE_DEADLINE_S)
                return
            except InnkeeperError as error:
                failure = error
        raise failure

    return load


async def _open_kvm(context: DoctorContext) -> None:
    """What udev's rules do on a usual host: group kvm, mode 0660."""
    await probes.in_daemon_thread(_give_to_group_kvm, context.kvm_device)


def _give_to_group_kvm(device: str) -> None:
    try:
        group = grp.getgrnam("kvm")
    except KeyError:
        raise Failed("there is no group kvm", hint="groupadd --system kvm") from None
    if not stat.S_ISCHR(os.stat(device).st_mode):
        raise Failed(f"{device} is not a device")
    os.chown(device, -1, group.gr_gid)
    os.chmod(device, 0o660)


async def _tun(context: DoctorContext) -> None:
    """The node if it is missing (containers), else the module."""
    device = context.path("dev/net/tun")
    if device.exists():
        await _modprobe("tun")(context)
        return
    await probes.in_daemon_thread(_make_tun_node, str(device))


def _make_tun_node(device: str) -> None:
    os.makedirs(os.path.dirname(device), exist_ok=True)
    os.mknod(device, stat.S_IFCHR | 0o666, _TUN_DEVICE)
    os.chmod(device, 0o666)  # as udev does: making an interface still needs CAP_NET_ADMIN


async def _remove_leaks(context: DoctorContext) -> None:
    if context.leaks is None:
        raise Failed("no daemon runs: it cannot be told what is in use")
    await context.leaks.remove()


_NO_ROOT: Final = frozenset({"leaks"})  # of whoever runs the daemon
REPAIRS: Final[dict[str, Repair]] = {
    "kvm": _modprobe("kvm_intel", "kvm_amd"),
    "kvm-access": _open_kvm,
    "tun": _tun,
    "bridge": _modprobe("bridge"),
    "nftables": _modprobe("nf_tables"),
    "vhost-net": _modprobe("vhost_net"),
    "leaks": _remove_leaks,
    "ksm": put_ksm_back,
}
