"""What daemons changed of the host's memory management, and left behind."""

from __future__ import annotations

from innkeeper.agent import probes
from innkeeper.agent.doctor.base import DoctorContext, Finding, check
from innkeeper.drivers.ksm import CLAIM, RUNNING, Claim, Ksm, put_back
from innkeeper.units import human_size


@check("ksm")
def check_ksm(context: DoctorContext) -> Finding:
    """Merging of equal pages: tells whether a daemon that is gone left it changed."""
    ksm, claim = Ksm(context.root), _claim(context)
    found = ksm.read()
    if found is None or not probes.ksm_accepted():
        return Finding("ksm", "info", "this kernel has no KSM: equal pages of VMs are not shared")
    if claim.abandoned():
        former = claim.former() or {}
        said = ", ".join(f"{knob}={value}" for knob, value in former.items())
        return Finding(
            "ksm",
            "warn",
            f"a daemon that is gone changed how equal pages are merged; it was {said}",
            f"echo {former.get('run', 0)} > /sys/kernel/mm/ksm/run",
            fixable=True,
        )
    saved = human_size(found.saved_bytes)
    if found.run != RUNNING:
        who = "the daemon" if context.privileged else "a daemon of root's"
        detail = f"there, but not running: {saved} saved; {who} turns it on while memory is short"
        return Finding("ksm", "info", detail, "inn host set ksm=always" if context.privileged else "")
    return Finding("ksm", "ok", f"running, saves {saved}")


async def put_ksm_back(context: DoctorContext) -> None:
    """Raises Unsupported, Failed."""
    await probes.in_daemon_thread(put_back, Ksm(context.root), _claim(context))


def _claim(context: DoctorContext) -> Claim:
    return Claim(context.path(str(CLAIM)))
