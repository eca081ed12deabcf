"""One VM in detail, for `inn top NAME`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from innkeeper.cli.output import clean
from innkeeper.cli.topview import BARS, UNKNOWN, at, count, percent, size, sparkline

Json = Mapping[str, Any]

_TITLE: Final = 9
_THREAD: Final = 12


def detail(one: Json, near: Json, day: Json, width: int, *, bars: str = BARS) -> list[str]:
    """`near` and `day` are its history of the last minutes and of the last day."""
    lines = [
        f"{clean(one['name'])}  {clean(one['state'])}  {clean(one['accelerator']) or UNKNOWN}"
        f"  pid {one['pid'] or UNKNOWN}",
        "",
        *_cpu(one, width, bars),
        *_rest(one),
        "",
        *_history("10 min", near, one, width, bars),
        *_history("a day", day, one, width, bars),
    ]
    return [line[:width] for line in lines]


def _line(title: str, text: str) -> str:
    return f"{title:<{_TITLE}}{text}"


def _cpu(one: Json, width: int, bars: str) -> Iterator[str]:
    cpu = one["cpu"]
    used = f"{cpu['used']:.2f}" if cpu["used"] is not None else UNKNOWN
    text = f"{used} CPUs used, {cpu['given']} vCPUs given, {percent(cpu['waited'])} % waited"
    if cpu["throttled"] is not None:
        text += f", {percent(cpu['throttled'])} % throttled"
    yield _line("CPU", text)
    room = max(0, width - _TITLE - _THREAD - 34)
    for thread in cpu["threads"]:
        bar = _bar(thread["used"], min(room, 30), bars)
        waited = f"{percent(thread['waited'])} % waited" if thread["waited"] is not None else ""
        yield _line(
            "", f"{thread['name']:<{_THREAD}}{percent(thread['used']):>6} %  {waited:<16} {bar}"
        ).rstrip()


def _bar(share: float, width: int, bars: str) -> str:
    return bars[-1] * round(min(1.0, share) * width)


def _rest(one: Json) -> Iterator[str]:
    memory = one["memory"]
    text = f"{size(memory['given'])} given, {size(memory['resident'])} resident"
    if memory.get("growth") is not None:
        text += f", could grow by {size(memory['growth'])}"
    yield _line("Memory", text)
    known = [name for name in ("private", "shared", "swapped", "huge", "merged") if memory[name] is not None]
    shares = ", ".join(f"{size(memory[name])} {name}" for name in known)
    if shares:
        yield _line("", f"of that {shares}")
    if (balloon := _balloon(memory)) != "":
        yield _line("Balloon", balloon)
    if faults := one["faults"]:
        yield _line("Faults", f"{count(faults['minor'])}/s minor, {count(faults['major'])}/s major")
    if disk := one["disk"]:
        read = f"{size(disk['read_bytes'])}B/s read ({count(disk['read_ops'])}/s)"
        written = f"{size(disk['write_bytes'])}B/s written ({count(disk['write_ops'])}/s)"
        yield _line("Disk", f"{read}, {written}, {count(disk['flush_ops'])} flushes/s")
    if network := one["network"]:
        source = "as the guest says" if network["source"] == "guest" else "by the host's tap"
        rx = f"{size(network['rx_bytes'])}B/s in ({count(network['rx_packets'])}/s)"
        tx = f"{size(network['tx_bytes'])}B/s out ({count(network['tx_packets'])}/s)"
        yield _line("Network", f"{rx}, {tx}, {source}")
    if kvm := one["kvm"]:
        reasons = sorted(
            ((value, name) for name, value in kvm.items() if name.endswith("_exits")), reverse=True
        )
        text = ", ".join(f"{name.removesuffix('_exits')} {count(value)}" for value, name in reasons if value)
        yield _line("KVM", f"{count(kvm.get('exits'))} exits/s" + (f": {text}" if text else ""))
    if pressure := one["pressure"]:
        text = ", ".join(f"{name} {percent(pressure[name])} %" for name in ("cpu", "memory", "io"))
        yield _line("Pressure", text)
    if numa := one["numa"]:
        nodes = ", ".join(f"node {node} {size(held)}" for node, held in sorted(numa["nodes"].items()))
        yield _line("NUMA", f"{percent(numa['local'])} % local: {nodes}")


def _balloon(memory: Json) -> str:
    left, state = memory.get("balloon"), memory.get("balloon_state")
    if left is None:
        return ""
    text = f"{size(max(0, memory['given'] - left))} taken, {size(left)} left"
    if memory.get("working_set") is not None:
        text += (
            f"; its guest needs {size(memory['working_set'])}, {size(memory['guest_available'])} available"
        )
    return text + (f" ({state})" if state and state != "follows" else "")


def _history(title: str, told: Json, one: Json, width: int, bars: str) -> Iterator[str]:
    """CPU, as much of it as has room, the newest at the right."""
    values: Sequence[float | None] = at(told, "average", "cpu") or ()
    peaks = [value for value in at(told, "peak", "cpu") or () if value is not None]
    if not peaks:
        return
    top = max(float(one["cpu"]["given"]), max(peaks))
    room = max(1, width - _TITLE - 24)
    shown = list(values)[-room:]
    yield _line(title, f"{sparkline(shown, top, bars)}  peak {max(peaks):.2f} of {top:.0f} CPUs")
