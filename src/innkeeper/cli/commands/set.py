"""`inn set`."""

from __future__ import annotations

import copy
from typing import Any

import click

from innkeeper.cli.app import App
from innkeeper.cli.command import name_argument, verb
from innkeeper.cli.commands.apply import say_restart
from innkeeper.cli.output import clean, print_json
from innkeeper.cli.specargs import pairs
from innkeeper.errors import BadRequest, Conflict, InnkeeperError, SpecError

Json = dict[str, Any]

ATTEMPTS = 10


@verb(
    "set",
    synopsis="inn set NAME FIELD=VALUE... [--json]",
    examples="""
inn set web restart_policy=always labels.owner=anna
inn set web labels.owner=                  remove a label
inn set web cpu.count=4                    at once, where it has room for them (cpu.max)
inn set web cpu.pin.0=2-3 cpu.emulator=1   on which CPUs of the host; cpu.pin.0= lets it run anywhere
inn set web qos.cpu.limit=1.5 qos.memory.reservation=256MiB
inn set web qos.cpu.limit=                 no limit any more; qos.cpu= takes back all of qos.cpu
inn set web qos.disk.total_bytes=50MiB/s   all of its disks together; qos.disk.total_bytes= for no limit
inn set web disks.0.qos.read_ops=500/s     one disk
inn set web memory.size=1GiB               at once, where it has room for it (memory.max)
inn set web networks.0.model=e1000 boot.order=cdrom,disk
""",
    exit_status={2: "No such field, or a value it cannot have."},
)
@name_argument
@click.argument("fields", metavar="FIELD=VALUE...", nargs=-1, required=True)
def set_(app: App, name: str, fields: tuple[str, ...]) -> None:
    """Change single fields of a VM.

    FIELD is the path of a field in the spec, as inn show --yaml prints it, with dots. What can
    change on a running VM (restart_policy, labels, qos, limits of disks, cpu.count up to cpu.max,
    memory.size up to memory.max) does at once; for everything else it is said that the VM takes
    it up at its next start. A guest may be unable to give up a vCPU or memory: then the command
    fails, for vCPUs after 10 s and for memory after 18 at most, and the VM keeps it. Asking again
    tries again.
    """
    values = pairs(fields, "field")
    instances = app.client.instances
    data = instances.get_data(name)
    try:
        if all(field == "restart_policy" or field.startswith("labels.") for field in values):
            answer = instances.handle(name).update(_update(data["spec"], values))
            said: Json = {}
        else:
            answer = said = _applied(app, name, data["spec"], values)
    except SpecError as error:
        raise _named(error) from None
    if app.json:
        print_json(answer)
    else:
        print(clean(name))
        say_restart(name, said)


def _applied(app: App, name: str, spec: Json, values: dict[str, str]) -> Json:
    """These fields and no others, also where somebody else changes some at the same time."""
    instances = app.client.instances
    for _again in range(ATTEMPTS - 1):
        try:
            return instances.apply(name, changed_spec(spec, values), before=spec)
        except Conflict as error:
            if not error.details.get("stale"):
                raise
            spec = instances.get_data(name)["spec"]
    return instances.apply(name, changed_spec(spec, values), before=spec)


def _update(spec: Json, values: dict[str, str]) -> Json:
    update: Json = {}
    labels = dict(spec.get("labels") or {})
    for field, value in values.items():
        if field == "restart_policy":
            update["restart_policy"] = value
            continue
        _set_label(labels, field.removeprefix("labels."), value)
        update["labels"] = labels
    return update


def _set_label(labels: dict[str, str], key: str, value: str) -> None:
    if value:
        labels[key] = value
    else:
        labels.pop(key, None)


_TABLES = ("labels", "cpu.pin")  # of names that users chose: `cpu.pin=` takes all of them away


def changed_spec(spec: Json, values: dict[str, str]) -> Json:
    """A copy of the spec with these fields changed. Values are texts; the daemon gives them a type."""
    changed = copy.deepcopy(spec)
    for field, value in values.items():
        if field.startswith("labels."):
            _set_label(changed.setdefault("labels", {}), field.removeprefix("labels."), value)
            continue
        if field.startswith("cpu.pin."):
            _set_label(changed["cpu"].setdefault("pin", {}), field.removeprefix("cpu.pin."), value)
            continue
        *parents, last = field.split(".")
        place: Any = changed
        for part in parents:
            place = _inside(place, part, field)
        if value and isinstance(place, dict) and (last == "qos" or isinstance(place.get(last), dict)):
            one = "total_bytes" if last == "qos" else "NAME" if field in _TABLES else next(iter(place[last]))
            raise SpecError(f"{field} is a group of fields", hint=f"name one, such as {field}.{one}=VALUE")
        if isinstance(place, list):
            place[_index(place, last, field)] = value
        elif isinstance(place, dict):
            # An empty value is an empty list where a list stands now: `boot.order=` has no device.
            is_list = isinstance(place.get(last), list)
            words = [word for word in value.split(",") if word] if is_list else value
            place[last] = {} if field in _TABLES and not value else words
        else:
            raise _no_field(field)
    return changed


def _inside(place: Any, part: str, field: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, field)]
    if isinstance(place, dict) and part in place:
        if place[part] is None:  # a group of fields of which none is given yet
            place[part] = {}
        return place[part]
    raise _no_field(field)


def _index(place: list[Any], part: str, field: str) -> int:
    if part.isascii() and part.isdigit() and int(part) < len(place):
        return int(part)
    if field.startswith("disks.") and field.count(".") > 1 and part.isdigit():
        raise _no_disk(place, field)
    raise _no_field(field)


def _no_disk(disks: list[Json], field: str) -> SpecError:
    """An image's root disk is not in the list unless something was asked of it."""
    there = ", ".join(f"disks.{place} ({disk.get('name')})" for place, disk in enumerate(disks))
    return SpecError(
        f"No such disk: {field}; {'it has ' + there if there else 'its spec lists none'}",
        hint="limits that all of its disks share: qos.disk.total_bytes=50MiB/s",
    )


def _no_field(field: str) -> SpecError:
    return SpecError(f"No such field: {field}", hint="see the fields with inn show NAME --yaml")


def _named(error: InnkeeperError) -> BadRequest:
    """The daemon's error, with the field's name in front where it has none."""
    path = error.details.get("field") or []
    field = ".".join(str(part) for part in path if part not in ("body", "spec"))
    said = error.message.removeprefix("spec").lstrip(".: ")  # fields are named without it here
    message = said if not field or field in said else f"{field}: {said}"
    return SpecError(message, hint=error.hint, details=error.details)
