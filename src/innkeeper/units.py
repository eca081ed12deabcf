"""Sizes, rates, durations and CPU amounts as people write them; bytes, seconds and cores inside."""

from __future__ import annotations

import re
from typing import Final

from innkeeper.errors import BadRequest

KiB: Final = 1024
MiB: Final = 1024 * KiB
GiB: Final = 1024 * MiB
TiB: Final = 1024 * GiB

# IEC prefixes are powers of two; the bare letters K, M, G, T are what QEMU's own options mean by them
# (powers of two as well, qemu-options.hx "suffixes"); kB, MB, GB, TB are decimal (SI).
_SIZE_UNITS: Final[dict[str, int]] = {
    "": 1, "b": 1,
    "k": KiB, "ki": KiB, "kib": KiB, "kb": 1000,
    "m": MiB, "mi": MiB, "mib": MiB, "mb": 1000**2,
    "g": GiB, "gi": GiB, "gib": GiB, "gb": 1000**3,
    "t": TiB, "ti": TiB, "tib": TiB, "tb": 1000**4,
}  # fmt: skip
_DURATION_UNITS: Final[dict[str, float]] = {
    "": 1.0, "ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0,
}  # fmt: skip
# Of a bit rate prefixes are decimal, and the binary ones are written out (IEC 80000-13).
_BIT_UNITS: Final[dict[str, int]] = {
    "bit": 1,
    "kbit": 1000, "kibit": KiB,
    "mbit": 1000**2, "mibit": MiB,
    "gbit": 1000**3, "gibit": GiB,
    "tbit": 1000**4, "tibit": TiB,
}  # fmt: skip
_NUMBER_UNIT: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int) -> int:
    """Bytes from ``512MiB``, ``10G``, ``1.5GiB`` or a plain number of bytes.

    Raises BadRequest for an unknown unit, a negative number or a fraction of a byte.
    """
    if isinstance(text, bool):
        raise BadRequest(f"Not a size: {text!r}", hint="write it like 512MiB or 10GiB")
    if isinstance(text, int):
        if text < 0:
            raise BadRequest(f"A size cannot be negative: {text}", hint="write it like 512MiB or 10GiB")
        return text
    match = _NUMBER_UNIT.fullmatch(text)
    if not match:
        raise BadRequest(f"Not a size: {text!r}", hint="write it like 512MiB or 10GiB")
    number, unit = match.groups()
    factor = _SIZE_UNITS.get(unit.lower())
    if factor is None:
        raise BadRequest(f"Unknown unit {unit!r} in size {text!r}", hint="use KiB, MiB, GiB or TiB")
    whole, _, fraction = number.partition(".")
    scale = 10 ** len(fraction)
    scaled = int(whole + fraction) * factor
    if scaled % scale and factor == 1:
        raise BadRequest(f"A size is a whole number of bytes: {text!r}")
    return int(scaled // scale)


def format_size(size_bytes: int) -> str:
    """The exact size in the largest IEC unit that divides it: 536870912 -> ``512MiB``."""
    for unit, factor in (("TiB", TiB), ("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        if size_bytes >= factor and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}B"


def human_size(size_bytes: float) -> str:
    """A rounded size for tables: ``1.4 GiB``."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def parse_cores(text: str | int | float) -> int:
    """Thousandths of a core from ``1.5``, ``1500m`` or a plain number of cores.

    Raises BadRequest for another unit, a negative number or less than a thousandth.
    """
    hint = "write it like 1.5 or 1500m"
    match = None if isinstance(text, bool) else _NUMBER_UNIT.fullmatch(str(text))
    if match is None or match.group(2) not in ("", "m"):
        raise BadRequest(f"Not an amount of CPU: {text!r}", hint=hint)
    number, unit = match.groups()
    whole, _, fraction = number.partition(".")
    thousandths = int(whole + fraction) * (1 if unit else 1000)
    if thousandths % 10 ** len(fraction):
        raise BadRequest(f"CPU is counted in thousandths of a core: {text!r}", hint=hint)
    return int(thousandths // 10 ** len(fraction))


def format_cores(millicores: int) -> str:
    """The exact amount as short as it goes: 1500 -> ``1.5``, 2000 -> ``2``, 75 -> ``75m``."""
    if millicores % 100 == 0:
        return f"{millicores / 1000:g}"
    return f"{millicores}m"


def parse_rate(text: str | int) -> int:
    """Bytes per second from ``50MiB/s``, ``100Mbit/s`` or a plain number of bytes; ``/s`` may be left out.

    Raises BadRequest for an unknown unit, a negative number, a fraction of a byte, another time than a
    second, and ``Mb``, which may mean bits or bytes.
    """
    hint = "write it like 50MiB/s or 100Mbit/s"
    match = None if isinstance(text, bool) else _NUMBER_UNIT.fullmatch(_per_second(text))
    if match is None:
        raise BadRequest(f"Not a rate: {text!r}", hint=hint)
    number, unit = match.groups()
    if re.fullmatch(r"[A-Za-z]i?b", unit):
        raise BadRequest(
            f"{unit}/s may mean bits or bytes: {text!r}", hint=f"write {unit}it/s or {unit[:-1]}B/s"
        )
    bits = _BIT_UNITS.get(unit.lower())
    factor = _SIZE_UNITS.get(unit.lower()) if bits is None else bits
    if factor is None:
        raise BadRequest(f"Unknown unit {unit!r} in rate {text!r}", hint=hint)
    whole, _, fraction = number.partition(".")
    scale = 10 ** len(fraction) * (1 if bits is None else 8)
    scaled = int(whole + fraction) * factor
    if scaled % scale and (factor == 1 or bits is not None):
        raise BadRequest(f"A rate is a whole number of bytes per second: {text!r}", hint=hint)
    return int(scaled // scale)


def format_rate(bytes_per_second: int) -> str:
    """The exact rate in bytes: 52428800 -> ``50MiB/s``, 12500000 -> ``12500000B/s``."""
    return f"{format_size(bytes_per_second)}/s"


def parse_ops(text: str | int) -> int:
    """Operations per second from ``500/s`` or a plain number. Raises BadRequest for anything else."""
    match = None if isinstance(text, bool) else re.fullmatch(r"\s*([0-9]+)\s*", _per_second(text), re.ASCII)
    if match is None:
        raise BadRequest(
            f"Not a number of operations per second: {text!r}", hint="write it like 500/s or 500"
        )
    return int(match[1])


def format_ops(per_second: int) -> str:
    """500 -> ``500/s``."""
    return f"{per_second}/s"


def _per_second(text: str | int) -> str:
    return re.sub(r"\s*/\s*s(ec)?\s*$", "", str(text))


def parse_duration(text: str | int | float) -> float:
    """Seconds from ``30s``, ``5m``, ``250ms``, ``1h`` or a plain number of seconds."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        if text < 0:
            raise BadRequest(f"A duration cannot be negative: {text}")
        return float(text)
    match = _NUMBER_UNIT.fullmatch(str(text))
    factor = _DURATION_UNITS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise BadRequest(f"Not a duration: {text!r}", hint="write it like 30s, 5m or 250ms")
    return float(match.group(1)) * factor


def human_duration(seconds: float) -> str:
    """``58 ms``, ``1.52 s``, ``3m 20s``, ``2d 4h`` - two significant parts, for tables."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, secs = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {secs}s"
