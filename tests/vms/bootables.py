"""Guests without an operating system: boot sectors that say a line on the serial port and then halt,
shut down, echo, wait for the power button, spin, read their disk, or say which hypervisor they find. They
start in a fraction of a second and need 16 MiB."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final, Literal

Kind = Literal["halt", "shutdown", "echo", "button", "spin", "read", "cpuid"]

KINDS: Final[tuple[Kind, ...]] = ("halt", "shutdown", "echo", "button", "spin", "read", "cpuid")
GREETING: Final = "INN-BOOTED"

_HALT: Final = bytes.fromhex("f4 eb fd")  # 1: hlt; jmp 1b
_ENDINGS: Final[dict[Kind, bytes]] = {
    "halt": _HALT,
    # S5 by the ACPI PM1a control register, where SeaBIOS puts it on q35 and pc
    "shutdown": bytes.fromhex("ba 04 06  b8 00 20  ef") + _HALT,
    # 1: wait for a byte in the line status register; read it; write it; jmp 1b
    "echo": bytes.fromhex("ba fd 03  ec  a8 01  74 f8  ba f8 03  ec  ee  eb f1"),
    # enable the power button (PM1a enable register); sti; 1: hlt until the next timer tick; when the
    # button's bit in the status register is set, shut down as above, else jmp 1b
    "button": bytes.fromhex("ba 02 06  b8 00 01  ef  fb  f4  ba 00 06  ed  f6 c4 01  74 f6")
    + bytes.fromhex("ba 04 06  b8 00 20  ef")
    + _HALT,
    "spin": bytes.fromhex("eb fe"),
    # 1: es = 0; read a sector of the first disk to 0x8000 (int 13h, function 2); jmp 1b
    "read": bytes.fromhex("31 c0  8e c0  b8 01 02  bb 00 80  b9 01 00  ba 80 00  cd 13  eb ec"),
    # ss = 0; sp = 0x7c00; cpuid of leaf 0x40000000; push edx, ecx, ebx: the hypervisor's name; si = sp;
    # 12 times: write what is printable of it, else a dot; a newline
    "cpuid": bytes.fromhex("31 c0  8e d0  bc 00 7c  66 b8 00 00 00 40  0f a2  66 52  66 51  66 53  89 e6")
    + bytes.fromhex("b9 0c 00  ba f8 03  ac  3c 20  73 02  b0 2e  ee  e2 f6  b0 0a  ee")
    + _HALT,
}
_SECTOR: Final = 512


def boot_sector(kind: Kind = "halt", text: str = GREETING) -> bytes:
    start = bytes.fromhex("fa  31 c0  8e d8")  # cli; ds = 0
    # mov si, text; mov dx, COM1; 1: lodsb; test al, al; jz 2f; out dx, al; jmp 1b; 2:
    loop = bytes.fromhex("ba f8 03  ac  84 c0  74 03  ee  eb f8")
    ending = _ENDINGS[kind]
    at = 0x7C00 + len(start) + 3 + len(loop) + len(ending)
    code = start + b"\xbe" + at.to_bytes(2, "little") + loop + ending + text.encode() + b"\r\n\0"
    assert len(code) <= _SECTOR - 2
    return code.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa"


def boot_disk(path: Path, kind: Kind = "halt", text: str = GREETING) -> Path:
    """A raw disk of 1 MiB."""
    path.write_bytes(boot_sector(kind, text).ljust(1 << 20, b"\0"))
    return path


def boot_iso(path: Path, kind: Kind = "halt", text: str = "INN-CDROM") -> Path:
    """An ISO that boots without emulation (El Torito)."""
    import pycdlib

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=1)
    code = boot_sector(kind, text).ljust(2048, b"\0")
    iso.add_fp(io.BytesIO(code), len(code), "/BOOT.;1")
    iso.add_eltorito("/BOOT.;1", bootcatfile="/BOOT.CAT;1", boot_load_size=4)
    iso.write(str(path))
    iso.close()
    return path
