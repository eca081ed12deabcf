"""Guests' architectures: which QEMU runs them, on which machine, and that all but the host's are emulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Architecture = Literal["x86_64", "aarch64", "riscv64"]

HOST: Final = "x86_64"
# The Debian and Ubuntu package of QEMU for each, and the machine type that a VM has where nobody chooses.
QEMU_PACKAGES: Final[Mapping[str, str]] = {
    "x86_64": "qemu-system-x86",
    "aarch64": "qemu-system-arm",
    "riscv64": "qemu-system-misc",
}
DEBIAN_NAMES: Final[Mapping[str, str]] = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
DEFAULT_MACHINES: Final[Mapping[str, str]] = {"x86_64": "q35", "aarch64": "virt", "riscv64": "virt"}
EMULATED: Final = "guests of another architecture than the host's are emulated"
# What `cpu.model: auto` is. `max` of aarch64 boots a tiny guest in 6.3 s with Arm's algorithm for pointer
# authentication, and in 2.3 s with a cheaper one; QEMU's riscv64 had no `max` before 9.1, and forgets Sstc's
# timers when a guest is forked (engine/qemu/timers.py).
AUTO_CPU: Final[Mapping[str, str]] = {"aarch64": "max,pauth-impdef=on", "riscv64": "rv64,sstc=off"}


def qemu_name(architecture: str) -> str:
    return f"qemu-system-{architecture}"


def missing_qemu(architecture: str) -> tuple[str, str]:
    """What to say, and what to do about it, where there is no QEMU for such guests."""
    if architecture == HOST:
        return "QEMU is not installed", "install it: inn doctor --fix"
    package = QEMU_PACKAGES[architecture]
    return (
        f"QEMU for {architecture} guests is not installed",
        f"run as root: apt-get install --no-install-recommends {package}; then restart the daemon",
    )
