"""How memory and CPUs that were inspected are shown to people."""

from __future__ import annotations

from typing import Any, Final

from innkeeper.cli.output import clean, print_pairs, print_table
from innkeeper.units import format_size, human_duration, human_size

Json = dict[str, Any]
_COLUMNS: Final = 64
_LEGEND: Final = (
    ("o", "own", "the VM's own"),
    ("h", "huge", "its own, in huge pages"),
    ("s", "shared", "common with forks, not copied"),
    ("p", "private", "copied from there when it was written"),
    ("k", "ksm", "merged with equal pages (KSM)"),
    ("w", "swapped", "swapped out"),
    (".", "untouched", "never touched"),
)
_KVM_SHOWN: Final = 12
_SHADOW, _NESTED = "shadow page table", "EPT or NPT"


def show_map(answer: Json) -> None:
    totals = answer["totals"]
    print_pairs(
        [
            ("memory", human_size(totals["bytes"])),
            ("in host memory", human_size(totals["present"])),
            ("ballooned", "" if totals["ballooned"] is None else human_size(totals["ballooned"])),
            ("shared with", ", ".join(answer["shared_with"])),
            ("NUMA nodes", _nodes(answer["nodes"])),
            ("", answer["nodes_note"]),
        ]
    )
    print()
    for cpu in answer["cpus"]:
        print(f"CPU {cpu['cpu']}: {_mode(cpu)}, rip {cpu['rip']}, cr3 {cpu['cr3']}, paging {cpu['paging']}")
    print()
    numa = answer["nodes"] is not None
    titles = ["SLOT", "GUEST-PHYSICAL", "", "SIZE", "KIND", "HOST-VIRTUAL"]
    rows = [
        [
            slot["name"],
            slot["first"],
            slot["last"],
            format_size(slot["bytes"]),
            slot["kind"] if slot["guest_ram"] else f"{slot['kind']}, device",
            slot["host_address"],
            *([_nodes(slot["nodes"])] if numa else []),
        ]
        for slot in answer["slots"]
    ]
    print_table([*titles, *(["NODES"] if numa else [])], rows)
    print()
    _print_pictures(answer)
    print()
    for letter, state, meaning in _LEGEND:
        if totals[state]:
            print(f"{letter}  {human_size(totals[state]):>9}  {meaning}")


def _print_pictures(answer: Json) -> None:
    cell = answer["cell_bytes"]
    print(f"one letter is {format_size(cell)}; a capital: at least half of it is touched")
    for picture in answer["pictures"]:
        first, cells = int(picture["first"], 16), picture["cells"]
        for at in range(0, len(cells), _COLUMNS):
            print(f"{first + at * cell:#014x}  {cells[at : at + _COLUMNS]}")


def _nodes(nodes: Json | None) -> str:
    return ", ".join(f"{node}: {human_size(size)}" for node, size in (nodes or {}).items())


def _mode(cpu: Json) -> str:
    """As in `long, ring 0, halted`."""
    words = [cpu["mode"], f"ring {cpu['ring']}", *(["SMM"] if cpu["smm"] else [])]
    return ", ".join([*words, *(["halted"] if cpu["halted"] else [])])


# -- one address -----------------------------------------------------------------------------------


def show_address(answer: Json) -> None:
    cpu, walk = answer["cpu"], answer["walk"]
    print_pairs(
        [
            ("asked for", answer["asked"]),
            (f"CPU {cpu['cpu']}", f"{_mode(cpu)}, cr3 {cpu['cr3']}, paging {cpu['paging']}"),
            ("guest-virtual", answer["virtual"]),
        ]
    )
    if walk is not None:
        _print_walk(walk)
    slot, device = answer["slot"], answer["device"]
    where = slot and f"{slot['name']}, {slot['first']} to {slot['last']}, {slot['kind']}"
    if device:
        where = f"{device}: a device, no memory"
    elif answer["physical"] and not slot:
        where = "nothing is there"
    print_pairs(
        [
            ("guest-physical", answer["physical"] or "not mapped"),
            ("slot", where),
            *(_host_pairs(answer["host"], answer["content"]) if answer["host"] else []),
        ]
    )
    if answer["composed"]:
        _print_composed(answer["composed"])


def _print_walk(walk: Json) -> None:
    print()
    if walk["steps"]:
        rows = [
            [
                step["level"],
                step["index"],
                step["entry_address"],
                step["entry"],
                " ".join(step["flags"]),
                _target(step),
                (step["host"] or {}).get("physical"),
                (step["host"] or {}).get("node"),
            ]
            for step in walk["steps"]
        ]
        titles = ["LEVEL", "INDEX", "ENTRY AT", "ENTRY", "FLAGS", "LEADS TO", "ENTRY'S HOST-PHYSICAL", "NODE"]
        print_table(titles, rows)
    page = walk["page"]
    if walk["end"] != "mapped":
        level = f" at {walk['level']}" if walk["level"] else ""
        print(f"the walk ended{level}: {walk['end'].replace('-', ' ')}: {clean(walk['detail'])}")
    elif walk["paging"] == "off":
        print("paging is off: the address is physical")
    else:
        rights = "".join(
            letter if page[key] else "-"
            for letter, key in (("w", "writable"), ("u", "user"), ("x", "executable"))
        )
        print(f"page of {format_size(page['bytes'])} at {page['base']}, r{rights}")
    print()


def _target(step: Json) -> str:
    if "P" not in step["flags"]:
        return ""
    size = f" ({format_size(step['page_bytes'])} page)" if step["page_bytes"] else ""
    return f"{step['points_to']}{size}"


def _host_pairs(host: Json, content: str) -> list[tuple[str, object]]:
    marks = [
        word
        for word, shown in (
            ("in QEMU's page tables" if host["mapped"] else "not in QEMU's page tables now", True),
            ("of the memory file", host["file"]),
            ("exclusive", host["exclusive"]),
            ("soft-dirty", host["soft_dirty"]),
            ("swapped", host["swapped"]),
        )
        if shown
    ]
    size = format_size(host["page_bytes"]) + (f" ({host['huge']})" if host["huge"] != "no" else "")
    return [
        ("host-virtual", host["address"]),
        ("host-physical", host["physical"] or host["hidden"] or "no page"),
        ("state", f"{host['state']}: {', '.join(marks)}"),
        ("host page", size),
        ("NUMA node", "" if host["node"] is None else str(host["node"])),
        ("content", content),
    ]


def _print_composed(composed: Json) -> None:
    print()
    rows = [
        [
            title,
            entry["source"],
            entry["target"],
            format_size(entry["bytes"]),
            _entry_rights(entry, title),
            references,
        ]
        for title, entry, references in (
            (_SHADOW, composed["shadow"], composed["shadow_references"]),
            (_NESTED, composed["nested"], composed["nested_references"]),
        )
        if entry is not None
    ]
    print_table(["WOULD HOLD", "FROM", "TO (HOST-PHYSICAL)", "PAGE", "RIGHTS", "READS PER WALK"], rows)
    reasons = {
        why for entry in (composed["shadow"], composed["nested"]) if entry is not None for why in entry["why"]
    }
    for why in sorted(reasons):
        print(f"  {why}")
    print(f"used here: {composed['used']}: {composed['note']}")


def _entry_rights(entry: Json, title: str) -> str:
    """EPT has no bit for user programs: what those may do is in the guest's own tables."""
    if not entry["present"]:
        return "not present"
    letters = [("w", "writable"), ("u", "user"), ("x", "executable")]
    return "r" + "".join(
        letter if entry[key] else "-" for letter, key in letters if letter != "u" or title == _SHADOW
    )


# -- CPUs ------------------------------------------------------------------------------------------


def show_cpus(answer: Json) -> None:
    paused = ", paused" if answer["paused"] else ""
    print(f"{answer['name']}: {answer['accelerator']}{paused}")
    for cpu in answer["cpus"]:
        summary, thread = cpu["summary"], cpu["thread"]
        print(f"\nCPU {summary['cpu']}: {_mode(summary)}")
        place = ", ".join(f"{key.removesuffix('-id')} {value}" for key, value in cpu["topology"].items())
        print_pairs(
            [
                ("  at", place),
                ("  thread", thread and _thread(thread)),
                ("  rip", summary["rip"]),
                ("  rsp", summary["rsp"]),
                ("  cr0", _flags(summary["cr0"], cpu["flags"]["cr0"])),
                ("  cr2", summary["cr2"]),
                ("  cr3", f"{summary['cr3']}  paging {summary['paging']}"),
                ("  cr4", _flags(summary["cr4"], cpu["flags"]["cr4"])),
                ("  efer", _flags(summary["efer"], cpu["flags"]["efer"])),
            ]
        )
        print("  executing:" if not summary["halted"] else "  halted, next:")
        for line in cpu["executing"]:
            print(f"    {clean(line)}")
        if cpu["exits"]:
            busiest = sorted(cpu["exits"].items(), key=lambda item: -item[1])[:_KVM_SHOWN]
            print("  KVM: " + ", ".join(f"{name} {count}" for name, count in busiest if count))
    if answer["note"]:
        print(f"\n{answer['note']}")


def _flags(value: str, names: list[str]) -> str:
    return f"{value}  {' '.join(names)}"


def _thread(thread: Json) -> str:
    used = human_duration(thread["user_s"] + thread["system_s"])
    waited = human_duration(thread["waited_s"])
    return (
        f"{thread['id']} ({thread['name']}), state {thread['state']}, on host CPU {thread['ran_on']}, "
        f"ran {used}, waited for a CPU {waited}"
    )
