"""Numbers as the sentences have them."""

from __future__ import annotations

from innkeeper.units import human_duration, human_size


def percent(share: float) -> str:
    """Of the time: whole ones, and no `0 %` of what was there."""
    if 0 < share < 0.005:
        return "less than 1 %"
    return f"{share * 100:.0f} %"


def cpus(value: float) -> str:
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"


def many_cpus(value: float) -> str:
    """`1 CPU`, `0.5 CPUs`."""
    return f"{value:g} CPU" + ("" if value == 1 else "s")


def size(value: float) -> str:
    return human_size(value)


def duration(seconds: float) -> str:
    return human_duration(seconds) if seconds >= 0.0005 else f"{seconds * 1e6:.0f} us"
