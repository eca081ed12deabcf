"""Why a VM is slow, for `inn top --why NAME`. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from innkeeper.cli.output import clean
from innkeeper.cli.topview import UNKNOWN, size
from innkeeper.units import human_duration

Json = Mapping[str, Any]

# As the daemon's own (agent/attribution/judge.py): what cost less is not worth a table.
WORTH: Final = 0.05
LEAST_WIDTH: Final = 20
_INDENT: Final = "  "
_WHERE: Final = {
    "cpu": "CPU",
    "cpu-limit": "its own CPU limit",
    "stolen": "stolen from the host",
    "memory": "memory",
    "memory-limit": "its own memory limit",
    "disk": "disk",
    "disk-limit": "its own disk limit",
}


def lines(why: Json, width: int) -> list[str]:
    width = max(width, LEAST_WIDTH)
    found = list(_wrapped(f"{clean(why['verdict'])}.", width))
    found += ["", *_losses(why, width)]
    for cause in why["causes"]:
        if (cause["lost"] or 0.0) >= WORTH:
            if cause["users"] and cause["unit"]:
                found += ["", *_users(cause, width)]
            if cause["advice"]:
                found += ["", *_advice(cause, width)]
    return found


def _wrapped(text: str, width: int, indent: str = "") -> Iterator[str]:
    yield from textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _losses(why: Json, width: int) -> Iterator[str]:
    known = why["known_s"]
    seconds = human_duration(known) if known >= 60 else f"{known:.0f} s"
    yield from _wrapped(f"Of {seconds} until now it lost, of the time it wanted to run:", width)
    for cause in why["causes"]:
        lost = UNKNOWN if cause["lost"] is None else f"{cause['lost'] * 100:.1f} %"
        text = f"{lost:>8}  {_where(cause)}"
        if cause["lost"] is None:
            text += f": not known, {clean(cause['missing'])}"
        yield from _wrapped(_INDENT + text, width, " " * 12 if width > 30 else "")


def _where(cause: Json) -> str:
    where = _WHERE.get(cause["resource"], clean(cause["resource"]))
    return f"{where} on {clean(cause['device'])}" if cause["device"] else where


def _users(cause: Json, width: int) -> Iterator[str]:
    yield from _wrapped(f"{_head(cause)}:", width)
    unit = cause["unit"]
    rows = [(_amount(one["used"], unit), _name(one), _terms(one, unit)) for one in cause["users"]]
    amounts = max(len(row[0]) for row in rows)
    names = max((len(row[1]) for row in rows if row[2]), default=0)
    for amount, name, terms in rows:
        line = f"{_INDENT}{amount:>{amounts}}  {name:<{names}}  {terms}".rstrip()
        yield line if len(line) <= width else line[: width - 1] + "~"


def _head(cause: Json) -> str:
    there = cause["capacity"]
    match cause["unit"], cause["resource"]:
        case _, "cpu-limit":
            return "What it used" + (f" of {there:g} CPUs" if there is not None else "")
        case "cpus", _:
            return f"Who used the {there:g} CPUs meanwhile"
        case "bytes", _:
            return f"Who had the {size(there)} of memory meanwhile"
        case "share", _:
            return f"Who kept {clean(cause['device'])} busy meanwhile"
        case _:
            return f"Who used {clean(cause['device'])} meanwhile"


def _amount(value: float, unit: str) -> str:
    if unit == "cpus":
        return f"{value:.2f}"
    if unit == "share":
        return f"{value * 100:.1f} %"
    return size(value) + ("/s" if unit == "bytes/s" else "")


def _name(one: Json) -> str:
    return clean(one["name"]) + (" (itself)" if one["itself"] else "")


def _terms(one: Json, unit: str) -> str:
    """What it may take, as it was told."""
    found = []
    if one["shares"] is not None:
        found.append(f"shares {clean(one['shares'])}")
    for what in ("reservation", "limit"):
        if one[what] is not None:
            found.append(f"{what} {one[what]:g}" if unit == "cpus" else f"{what} {size(one[what])}")
    return ", ".join(found)


def _advice(cause: Json, width: int) -> Iterator[str]:
    yield f"What to do about {_where(cause)}:"[:width]
    for one in cause["advice"]:
        # A command is never broken: it is there to be copied.
        if one["command"]:
            yield _INDENT + clean(one["command"])
            indent = _INDENT * 3
        else:
            indent = _INDENT
        yield from textwrap.wrap(clean(one["effect"]), width, initial_indent=indent, subsequent_indent=indent)
