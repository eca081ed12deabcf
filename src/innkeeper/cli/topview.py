"""What `inn top` shows, as lines of text. Pure: answers of the API in, lines out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from innkeeper.cli.output import clean

Json = Mapping[str, Any]
Keys = tuple[str, ...]

UNKNOWN: Final = "-"
SORTS: Final = ("cpu", "memory", "disk", "network", "name")
SORT_KEYS: Final = {"c": "cpu", "m": "memory", "d": "disk", "n": "network"}
BARS: Final = " ▁▂▃▄▅▆▇█"
PLAIN_BARS: Final = " .:-=+*%#"
_GAP: Final = 2
_NAME_LEAST: Final = 8


def size(value: object) -> str:
    """Bytes in at most five places: `0`, `812`, `1.4M`, `512M`, `23G`."""
    if not isinstance(value, int | float):
        return UNKNOWN
    number = float(value)
    for unit in ("", "K", "M", "G", "T"):
        if number < 999.5 or unit == "T":
            # A fraction of a byte is nothing to speak of.
            fraction = unit and number < 9.95
            return f"{number:.1f}{unit}" if fraction else f"{number:.0f}{unit}"
        number /= 1024
    raise AssertionError("unreachable")


def count(value: object) -> str:
    """`0`, `7`, `1.2k`, `35k`, `2.1M`."""
    if not isinstance(value, int | float):
        return UNKNOWN
    number = float(value)
    for unit in ("", "k", "M", "G"):
        if number < 999.5 or unit == "G":
            fraction = unit and number < 9.95
            return f"{number:.1f}{unit}" if fraction else f"{number:.0f}{unit}"
        number /= 1000
    raise AssertionError("unreachable")


def percent(value: object) -> str:
    """Of one CPU, or of the time: `0.3`, `98.2`, `199`."""
    if not isinstance(value, int | float):
        return UNKNOWN
    return f"{value * 100:.1f}" if value < 0.9995 else f"{value * 100:.0f}"


def at(item: Json, *keys: str) -> Any:
    """A value some levels down; None where a level is not known."""
    found: Any = item
    for key in keys:
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    return found


def total(item: Json, *paths: Keys) -> float | None:
    """The sum of what is known of these; None when nothing is."""
    known = [value for value in (at(item, *path) for path in paths) if isinstance(value, int | float)]
    return float(sum(known)) if known else None


def balloon(one: Json) -> str:
    """How much of its memory it was made to give, or why it is none: `384M`, `0`, `never`, `silent`."""
    memory = one.get("memory") or {}
    state, left, given = memory.get("balloon_state"), memory.get("balloon"), memory.get("given")
    if isinstance(left, int) and isinstance(given, int) and (given > left or state == "follows"):
        return size(max(0, given - left))
    return str(state) if state else UNKNOWN


@dataclass(frozen=True)
class Column:
    title: str
    show: Callable[[Json], str]
    rank: int  # the lowest go first where there is room for few
    sort: str = ""
    left: bool = False  # a word, not a number

    def cell(self, text: str, width: int) -> str:
        return text.ljust(width) if self.left else text.rjust(width)


_DISK: Final = (("disk", "read_bytes"), ("disk", "write_bytes"))
_OPS: Final = (("disk", "read_ops"), ("disk", "write_ops"))
_NETWORK: Final = (("network", "rx_bytes"), ("network", "tx_bytes"))

COLUMNS: Final = (
    Column("STATE", lambda one: clean(one.get("state")), 3, left=True),
    Column("ACCEL", lambda one: clean(one.get("accelerator")) or UNKNOWN, 10, left=True),
    Column("CPU%", lambda one: percent(at(one, "cpu", "used")), 1, "cpu"),
    Column("WAIT%", lambda one: percent(at(one, "cpu", "waited")), 2),
    Column("HELD%", lambda one: percent(at(one, "cpu", "throttled")), 15),
    Column("GIVEN", lambda one: size(at(one, "memory", "given")), 9),
    Column("USED", lambda one: size(at(one, "memory", "resident")), 1, "memory"),
    Column("BALLOON", lambda one: balloon(one), 13),
    Column("SHARED", lambda one: size(at(one, "memory", "shared")), 8),
    Column("SWAP", lambda one: size(at(one, "memory", "swapped")), 12),
    Column("READ/s", lambda one: size(at(one, "disk", "read_bytes")), 4, "disk"),
    Column("WRITE/s", lambda one: size(at(one, "disk", "write_bytes")), 5),
    Column("IOPS", lambda one: count(total(one, *_OPS)), 11),
    Column("RX/s", lambda one: size(at(one, "network", "rx_bytes")), 6, "network"),
    Column("TX/s", lambda one: size(at(one, "network", "tx_bytes")), 7),
    Column("EXITS/s", lambda one: count(at(one, "kvm", "exits")), 14),
    Column("NUMA%", lambda one: percent(at(one, "numa", "local")), 15),
)  # fmt: skip


def sorted_by(instances: Sequence[Json], sort: str) -> list[Json]:
    """The largest first, and those that do not run last; of equals by name."""
    measures: dict[str, Callable[[Json], float | None]] = {
        "cpu": lambda one: at(one, "cpu", "used"),
        "memory": lambda one: at(one, "memory", "resident"),
        "disk": lambda one: total(one, *_DISK),
        "network": lambda one: total(one, *_NETWORK),
    }
    by_name = sorted(instances, key=lambda one: str(one["name"]))
    if sort not in measures:
        return by_name

    def order(one: Json) -> float:
        value = measures[sort](one)
        return 1.0 if value is None else -value

    return sorted(by_name, key=order)


def cells(instances: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    """The whole table, for what is not a screen."""
    titles = ["NAME", *(column.title for column in COLUMNS)]
    return titles, [[str(one["name"]), *(column.show(one) for column in COLUMNS)] for one in instances]


def table(instances: Sequence[Json], width: int, *, threads: bool = False) -> tuple[str, list[str]]:
    """The title line and a line per VM (and with `threads` one more), with as many columns as have room."""
    columns = _that_fit(instances, width)
    names = max([_NAME_LEAST, *(len(str(one["name"])) for one in instances)])
    widths = {column.title: _width(column, instances) for column in columns}
    taken = sum(value + _GAP for value in widths.values())
    names = max(_NAME_LEAST, min(names, width - taken))

    def joined(name: str, texts: Sequence[str]) -> str:
        shown = (column.cell(text, widths[column.title]) for column, text in zip(columns, texts, strict=True))
        return (" " * _GAP).join((_cut(name, names).ljust(names), *shown))

    head = joined("NAME", [column.title for column in columns])
    lines = []
    for one in instances:
        lines.append(joined(str(one["name"]), [column.show(one) for column in columns]))
        if threads:
            lines += _thread_lines(one, width)
    return head, lines


def _that_fit(instances: Sequence[Json], width: int) -> list[Column]:
    """By rank; what nobody has a value for (KVM's exits under TCG) is not shown at all."""
    room, chosen = width - _NAME_LEAST, []
    for column in sorted(COLUMNS, key=lambda one: one.rank):
        known = not instances or any(column.show(one) != UNKNOWN for one in instances)
        if known or column.rank <= 3:
            room -= _width(column, instances) + _GAP
            if room < 0:
                break
            chosen.append(column)
    return [column for column in COLUMNS if column in chosen]


def _width(column: Column, instances: Sequence[Json]) -> int:
    """Numbers come and go: their columns keep their width. States are read from the left."""
    return max([len(column.title), *(len(column.show(one)) for one in instances)], default=5)


def _thread_lines(one: Json, width: int) -> Iterator[str]:
    words = [f"{thread['name']} {percent(thread['used'])}" for thread in at(one, "cpu", "threads") or ()]
    line = " "
    for word in words:
        if len(line) + len(word) + _GAP > width and line.strip():
            yield line
            line = " "
        line += f" {word} "
    if line.strip():
        yield line


def _cut(text: str, width: int) -> str:
    text = clean(text)
    return text if len(text) <= width else text[: max(0, width - 1)] + "~"


def host_lines(host: Json, instances: Sequence[Json], now: float) -> list[str]:
    """Two lines about the host and all VMs together."""
    used, cpus = host.get("used"), host.get("cpus")
    free, memory = host.get("memory_available_bytes"), host.get("memory_bytes")
    busy = f"{used:.2f}" if isinstance(used, int | float) else UNKNOWN
    line = f"{clean(host.get('name'))}  {time.strftime('%H:%M:%S', time.localtime(now))}"
    line += f"  CPU {busy} of {cpus}"
    if (stolen := host.get("stolen") or 0) >= 0.005:
        line += f" ({stolen:.2f} stolen)"
    if isinstance(free, int) and isinstance(memory, int):
        line += f"  memory {size(memory - free)} of {size(memory)}"
    if swap := host.get("swap_bytes"):
        line += f"  swap {size(swap - host.get('swap_free_bytes', 0))} of {size(swap)}"
    line += "  load " + " ".join(f"{value:.2f}" for value in host.get("load", ()))
    running = [one for one in instances if one.get("state") == "running"]
    given = sum(at(one, "cpu", "given") or 0 for one in running)
    second = f"{len(running)} of {len(instances)} VMs running, {given} vCPUs"
    if pressure := host.get("pressure"):
        parts = (f"{name} {percent(pressure[name])}" for name in ("cpu", "memory", "io"))
        second += "  pressure % " + " ".join(parts)
    return [line, second]


def sparkline(values: Sequence[float | None], top: float, bars: str = BARS) -> str:
    """One character per value; a time when nothing is known is a dot in the middle."""
    gap = "·" if bars is BARS else "_"
    scale = len(bars) - 1
    return "".join(
        gap if value is None else bars[min(scale, max(0, round(value / top * scale)))] for value in values
    )
