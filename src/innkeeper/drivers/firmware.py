"""Where distributions put the UEFI firmware (OVMF, edk2) for QEMU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from innkeeper.errors import Unsupported

# (code, variables template): Debian 12/Ubuntu 24.04, older Debian, Fedora, Arch.
_PLACES: Final = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)


@dataclass(frozen=True)
class Firmware:
    code: Path
    variables_template: Path


def find_uefi(root: Path = Path("/")) -> Firmware:
    """Raises Unsupported when no UEFI firmware is installed."""
    for code, variables in _PLACES:
        pair = Firmware(root / code.lstrip("/"), root / variables.lstrip("/"))
        if pair.code.exists() and pair.variables_template.exists():
            return pair
    raise Unsupported("No UEFI firmware is installed", hint="install it: apt-get install ovmf")
