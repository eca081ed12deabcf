"""What `accelerator: auto|kvm|tcg` means on a host; asked by placement and by the agent's launch."""

from __future__ import annotations

from typing import Literal

from innkeeper.errors import Unsupported
from innkeeper.spec.host import KvmVerdict


def choose_accelerator(
    requested: str, verdict: KvmVerdict, detail: str, repair: str = ""
) -> tuple[Literal["kvm", "tcg"], str]:
    """(accelerator, why). `auto` takes KVM only where guests really run at hardware speed: a /dev/kvm
    that opens may still hang a Linux guest for ever. Raises Unsupported for a `kvm` that would."""
    if requested == "tcg":
        return "tcg", "asked for"
    if verdict == "hardware":
        return "kvm", detail
    if requested == "kvm":
        fix = f"{repair}, or " if repair else ""
        raise Unsupported(
            f"KVM does not work on this host ({verdict}): {detail}",
            hint=f"{fix}use --accel auto or --accel tcg; see inn doctor",
            details={"kvm": verdict},
        )
    return "tcg", detail
