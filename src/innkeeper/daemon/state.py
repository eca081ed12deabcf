"""The state directory: made, checked to be ours and of this machine, before anything opens it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from innkeeper.errors import Failed, StateInUse, StoreCorrupt
from innkeeper.paths import Paths, make_private_dir

_OWNER_FILE = "host.json"


def prepare(paths: Paths, machine_id: str, *, take_over: bool = False) -> None:
    """Make the directories and check whose they are.

    Raises StateInUse when another machine wrote them (two hosts on one shared disk would run the
    same VMs twice), StoreCorrupt when instances are there but the store is not.
    """
    try:
        for directory in (
            paths.state,
            paths.run,
            paths.images,
            paths.layers,
            paths.instances,
            paths.snapshots,
            paths.machines,
            paths.moments,
        ):
            make_private_dir(directory)
    except OSError as error:
        raise Failed(
            f"Cannot use the state directory {paths.state}: {error.strerror}",
            hint="choose another with --state DIR or INNKEEPER_STATE",
        ) from error
    _check_machine(paths.state / _OWNER_FILE, paths, machine_id, take_over)
    orphans = [entry.name for entry in paths.instances.iterdir()]
    if orphans and not paths.store.exists():
        raise StoreCorrupt(
            f"{paths.store} is missing, but the disks of {len(orphans)} instances are in {paths.instances}",
            hint="restore the file from a backup, or move the directory away to begin anew",
        )


def _check_machine(owner: Path, paths: Paths, machine_id: str, take_over: bool) -> None:
    if not machine_id:
        return
    try:
        known = json.loads(owner.read_text()).get("machine_id", "")
    except FileNotFoundError:
        known = ""
    except (OSError, ValueError, AttributeError) as error:
        raise StoreCorrupt(
            f"{owner} is damaged", hint=f"remove it if this is the machine of {paths.state}"
        ) from error
    if known and known != machine_id and not take_over:
        raise StateInUse(
            f"{paths.state} was written on another machine ({known[:12]}, this one is {machine_id[:12]})",
            hint="if that one will not use it any more: inn serve --take-over",
        )
    if known != machine_id:
        draft = owner.with_suffix(".tmp")
        draft.write_text(json.dumps({"machine_id": machine_id}) + "\n")
        os.replace(draft, owner)
