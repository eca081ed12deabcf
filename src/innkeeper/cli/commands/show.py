"""`inn show`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import Any

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import name_argument, verb
from innkeeper.cli.limits import limits_shown
from innkeeper.cli.output import clean, print_json, print_pairs
from innkeeper.units import human_duration, human_size


@verb(
    "show",
    synopsis="inn show NAME [--yaml | --argv] [--json]",
    examples="""
inn show web
inn show web --json | jq .status.pid
inn show web --yaml > web.yaml
inn show web --argv
""",
)
@name_argument
@click.option("--yaml", "as_yaml", is_flag=True, help="Print a file that inn apply -f takes back unchanged.")
@click.option("--argv", "as_argv", is_flag=True, help="Print the exact QEMU command line, for a shell.")
def show(app: App, name: str, as_yaml: bool, as_argv: bool) -> None:
    """Show all about one VM.

    A summary for people. With --json: everything, with name, uid, state, ready, accelerator, pid,
    addresses, spec (what was asked for), status (what was observed, with the times of each step of
    the last start), qos (what it is promised of its host, and has) and paths (where its files lie).
    """
    if as_yaml and as_argv:
        raise click.UsageError("--yaml and --argv exclude each other")
    if as_argv:
        argv = app.instance(name).argv()
        if app.json:
            print_json({"name": name, "argv": argv})
        else:
            print(shlex.join(argv))
        return
    data = app.client.instances.get_data(name)
    if not as_yaml:
        data["qos"] = app.instance(name).qos()
    if as_yaml:
        from innkeeper.cli.specyaml import brief, to_yaml

        if app.json:
            print_json({"kind": "instance", "name": name, "spec": brief(data["spec"])})
        else:
            print(to_yaml(data["name"], data["spec"]), end="")
    elif app.json:
        print_json(data)
    else:
        _print(data)


def _print(data: dict[str, Any]) -> None:
    spec, status = data.get("spec") or {}, data.get("status") or {}
    paths = data.get("paths") or {}
    memory = data.get("memory")
    machine = status.get("machine") or (spec.get("machine") or {}).get("type")
    print_pairs(
        [
            ("name", data.get("name")),
            ("state", _state(data, status)),
            ("note", data.get("note") or status.get("note")),
            ("accelerator", _with_reason(data.get("accelerator"), status.get("accelerator_reason"))),
            ("image", data.get("image") or "none"),
            ("machine", _with_reason(machine, status.get("qemu") and f"QEMU {status['qemu']}")),
            ("cpus", _cpus(spec.get("cpu") or {}, status)),
            ("pinned", ", ".join(_pins(spec.get("cpu") or {}))),
            ("memory", human_size(memory) if isinstance(memory, int) else memory),
            *_qos(data.get("qos") or {}, runs=bool(data.get("pid"))),
            ("balloon", _balloon(status)),
            ("host nodes", _nodes(data.get("nodes") or ())),
            ("addresses", ", ".join(data.get("addresses") or ())),
            ("forwards", ", ".join(_forwards(spec))),
            ("disks", ", ".join(_disk(item) for item in spec.get("disks") or ())),
            ("disk limits", "; ".join(_limits(spec, status))),
            ("pid", data.get("pid") or None),
            ("created", _moment(data.get("created_at"))),
            ("started", _moment(status.get("started_at"))),
            ("last start", ", ".join(_times(status.get("times_ms") or {}))),
            ("ended", _ended(status.get("ended"))),
            ("failure", _failure(status.get("failure"))),
            ("labels", ", ".join(f"{key}={value}" for key, value in (spec.get("labels") or {}).items())),
            ("files", paths.get("state")),
            ("uid", data.get("uid")),
        ]
    )


def _cpus(cpu: dict[str, Any], status: dict[str, Any]) -> str:
    """`3 of 8 (model max)`: how many it has, and may get; and how many are wanted, where that differs."""
    wanted, has, room = cpu.get("count"), status.get("cpus"), status.get("cpus_max")
    shown = f"{has} of {room}" if has and room and room > has else str(has or wanted)
    notes = [f"model {cpu['model']}" if cpu.get("model", "auto") != "auto" else ""]
    notes += [" ".join(cpu.get("features") or ()), f"{wanted} wanted" if has and has != wanted else ""]
    said = ", ".join(filter(None, notes))
    return f"{shown} ({said})" if said else shown


def _qos(qos: dict[str, Any], *, runs: bool) -> list[tuple[str, str]]:
    """What it is promised of each resource, what that comes to now, and what is not in force."""
    if not (cpu := qos.get("cpu")):
        return []
    kept = _memory_qos(qos.get("memory") or {})
    said = [f"{cpu['shares']} shares"]
    if cpu["reservation"] != "0":
        said.append(f"{cpu['reservation']} reserved")
    if cpu["limit"]:
        said.append(f"at most {cpu['limit']}")
    if cpu["entitlement"] is not None:
        said.append(f"{cpu['entitlement']:g} of the host when all are busy")
    told = f"{', '.join(said)}{'; NOT in force: ' + cpu['not_in_force'] if cpu['not_in_force'] else ''}"
    if runs and told == said[0]:  # nothing was asked for, and this host keeps no shares
        told = ""
    return [
        ("cpu time", told),
        *([("memory kept", kept)] if kept else []),
        *_disk_shares(qos.get("disk") or {}),
    ]


def _memory_qos(memory: dict[str, Any]) -> str:
    """Empty where nothing was asked for and nothing is swapped out."""
    said = [f"shares {memory['shares']}"] if memory.get("shares", 1000) != 1000 else []
    if memory.get("reservation"):
        how = " (not swapped out; cgroup v1 guarantees no more)" if memory["kept_by"] == "not-swapped" else ""
        said.append(f"{human_size(memory['reservation'])} reserved{how}")
    if memory.get("limit") is not None:
        used = f", {human_size(memory['used'])} used" if memory["used"] is not None else ""
        said.append(f"at most {human_size(memory['limit'])}{used}")
    if memory.get("swap", "auto") != "auto":
        swap = memory["swap"]
        said.append("never swapped" if swap == "never" else f"at most {human_size(swap)} swapped")
    if memory.get("swapped"):
        said.append(f"{human_size(memory['swapped'])} in swap now")
    told = ", ".join(said)
    return f"{told}; NOT in force: {memory['not_in_force']}" if memory.get("not_in_force") else told


def _disk_shares(disk: dict[str, Any]) -> list[tuple[str, str]]:
    if disk.get("shares", 1000) == 1000 and not disk.get("not_in_force"):
        return []
    why = disk.get("not_in_force")
    return [("disk time", f"{disk['shares']} shares{f'; NOT in force: {why}' if why else ''}")]


def _balloon(status: dict[str, Any]) -> str:
    why = status.get("balloon")
    return f"takes nothing: {why}" if why else ""


def _pins(cpu: dict[str, Any]) -> list[str]:
    found = [f"vCPU {number} to {cpus}" for number, cpus in (cpu.get("pin") or {}).items()]
    for name in ("emulator", "iothreads"):
        if cpu.get(name):
            found.append(f"{name} to {cpu[name]}")
    return found


def _state(data: dict[str, Any], status: dict[str, Any]) -> str:
    state = clean(data.get("state"))
    if status.get("panicked"):
        return f"{state}, the guest's kernel panicked"
    if data.get("template"):
        return f"template ({state})"
    if state == "running":
        return f"{state}, {'ready' if data.get('ready') else 'not ready yet'}"
    return state


def _with_reason(value: Any, reason: Any) -> str:
    return f"{value} ({reason})" if value and reason else str(value or "")


def _nodes(shares: Sequence[dict[str, Any]]) -> str:
    return ", ".join(
        f"{share['node']} ({share.get('cpus', 0)} vCPUs, {human_size(share.get('memory_bytes', 0))})"
        for share in shares
    )


def _forwards(spec: dict[str, Any]) -> list[str]:
    return [
        f"{item.get('address', '127.0.0.1')}:{item['host']} -> {item['guest']}/{item.get('protocol', 'tcp')}"
        for network in spec.get("networks") or ()
        for item in network.get("forward") or ()
    ]


def _disk(disk: dict[str, Any]) -> str:
    origin = disk.get("path") or disk.get("size") or disk.get("copy_of")
    return f"{disk['name']} ({origin})" if origin else str(disk["name"])


def _limits(spec: dict[str, Any], status: dict[str, Any]) -> list[str]:
    """Those in force where it runs, else those it will have."""
    now = status.get("disk_limits") or {}
    if now:
        shown = {name: limits_shown(one, shared=one["shared"]) for name, one in now.items() if one}
        return [f"{name} {limits}" for name, limits in shown.items()]
    own = {disk["name"]: limits_shown(disk.get("qos") or {}) for disk in spec.get("disks") or ()}
    shared = limits_shown((spec.get("qos") or {}).get("disk") or {}, shared=True)
    return [*(f"{name} {limits}" for name, limits in own.items() if limits), *filter(None, [shared])]


def _moment(seconds: Any) -> str:
    if not isinstance(seconds, int | float) or not seconds:
        return ""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    return f"{when} ({human_duration(max(0.0, time.time() - seconds))} ago)"


def _times(times_ms: dict[str, float]) -> list[str]:
    return [f"{step} {human_duration(value / 1000)}" for step, value in times_ms.items()]


def _ended(ended: dict[str, Any] | None) -> str:
    if not ended:
        return ""
    detail = f": {ended['detail']}" if ended.get("detail") else ""
    return f"{ended.get('reason')}{detail}, {_moment(ended.get('at'))}"


def _failure(failure: dict[str, Any] | None) -> str:
    return str(failure.get("message")) if failure else ""
