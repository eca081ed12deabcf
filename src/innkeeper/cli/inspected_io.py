"""How disks and network cards that were inspected are shown to people."""

from __future__ import annotations

from typing import Any

from innkeeper.cli.limits import limits_shown
from innkeeper.cli.output import clean, print_pairs, print_table
from innkeeper.units import format_size, human_size

Json = dict[str, Any]


def show_disks(answer: Json) -> None:
    if not answer["disks"]:
        print(f"{answer['name']} has no disks")
    for number, disk in enumerate(answer["disks"]):
        if number:
            print()
        in_flight = "not known" if disk["in_flight"] is None else disk["in_flight"]
        print(f"{disk['name']}: {format_size(disk['virtual_bytes'])} on {disk['bus']}")
        print_pairs(
            [
                ("  takes", human_size(disk["allocated_bytes"])),
                ("  state", disk["state"]),
                ("  cache", disk["cache"]),
                ("  aio", disk["aio"]),
                ("  discard", disk["discard"]),
                ("  limits", limits_shown(disk["throttle"], shared=disk["throttle_shared"])),
                ("  held back", "by " + ", ".join(disk["held_back_by"]) if disk["held_back_by"] else ""),
                ("  in flight", str(in_flight)),
            ]
        )
        rows = [
            [
                "written" if layer["writable"] else "read only",
                layer["format"],
                human_size(layer["allocated_bytes"]),
                ", ".join(layer["used_by"]),
                ", ".join(str(bitmap.get("name", "")) for bitmap in layer["bitmaps"]),
                layer["path"],
            ]
            for layer in disk["layers"]
        ]
        print_table(["LAYER", "FORMAT", "TAKES", "ALSO OF", "BITMAPS", "FILE"], rows)
        print_table(
            ["", "REQUESTS", "BYTES", "MERGED", "FAILED", "AVERAGE"],
            [_counters(kind, disk[kind]) for kind in ("reads", "writes", "flushes", "discards")],
        )


def _counters(kind: str, found: Json) -> list[object]:
    average = "" if found["average_us"] is None else f"{found['average_us']:g} us"
    failed = found["failed"] + found["invalid"]
    return [kind, found["requests"], human_size(found["bytes"]), found["merged"], failed, average]


def show_nics(answer: Json) -> None:
    if not answer["nics"]:
        print(f"{answer['name']} has no network card")
    for number, nic in enumerate(answer["nics"]):
        if number:
            print()
        pid = f" (pid {nic['backend_pid']})" if nic["backend_pid"] else ""
        gone = "" if nic["backend_alive"] in (True, None) else ", which has ended"
        cut = "" if nic["connected"] in (True, None) else ", not connected"
        guest = nic["guest"]
        waiting = "" if not nic["waiting_bytes"] else f"{human_size(nic['waiting_bytes'])} not taken yet"
        print(f"{nic['name']}: {nic['model']}, {clean(nic['mac'])}")
        print_pairs(
            [
                ("  back-end", nic["backend"] + pid + gone + cut),
                ("  host access", "allowed" if nic["host_access"] else ""),
                ("  forwarded", ", ".join(map(_forward, nic["forwards"]))),
                ("  waiting", waiting),
                ("  promiscuous", "yes" if nic["promiscuous"] else ""),
                ("  in the guest", guest and " ".join(filter(None, (guest["interface"], guest["state"])))),
                ("  addresses", guest and ", ".join(guest["addresses"])),
            ]
        )
        if guest and guest["counters"]:
            _print_counters(guest["counters"])
    if answer["note"]:
        print(clean(answer["note"]))


def _forward(one: Json) -> str:
    return f"{one['protocol']} {one['host']}:{one['host_port']} to {one['guest_port']}"


def _print_counters(found: Json) -> None:
    rows = [
        [
            title,
            human_size(found.get(f"{key}_bytes", 0)),
            *(found.get(f"{key}_{what}", 0) for what in ("packets", "errs", "dropped")),
        ]
        for title, key in (("received", "rx"), ("sent", "tx"))
    ]
    print_table(["", "BYTES", "PACKETS", "ERRORS", "DROPPED"], rows)
