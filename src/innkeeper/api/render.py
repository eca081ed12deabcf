"""Instances as the API shows them: the short form of a list, and the full one."""

from __future__ import annotations

import json
from typing import Any

from innkeeper.paths import Paths
from innkeeper.store.view import InstanceView


def dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def short(view: InstanceView) -> dict[str, Any]:
    """What a table of instances needs."""
    record, status = view.record, view.status
    note = status.failure.message if status.failure and not status.note else status.note
    return {
        "name": record.name,
        "uid": record.uid,
        "state": status.state.value,
        "ready": status.ready,
        "template": bool(status.template),
        "accelerator": status.accelerator,
        "pid": status.pid,
        "host": record.host,
        "image": record.spec.image,
        "cpus": record.spec.cpu.count,
        "memory": record.spec.memory.size,
        "addresses": list(status.addresses),
        "created_at": record.created_at,
        "started_at": status.started_at,
        "note": note,
    }


def damaged(name: str, why: str) -> dict[str, Any]:
    """The short form of an instance whose record cannot be read: one bad value hides no other."""
    return {
        "name": name, "uid": "", "state": "damaged", "ready": False, "template": False, "accelerator": "",
        "pid": 0, "host": "", "image": "", "cpus": 0, "memory": 0, "addresses": [], "created_at": 0.0,
        "started_at": 0.0, "note": why,
    }  # fmt: skip


def full(view: InstanceView, paths: Paths) -> dict[str, Any]:
    """Everything: the short form, what is wanted, what was observed, and where things lie."""
    record = view.record
    files = paths.instance(record.uid)
    return {
        **short(view),
        "spec": record.spec.model_dump(mode="json"),
        "wanted": record.wanted.model_dump(mode="json"),
        "status": view.status.model_dump(mode="json", exclude={"uid"}),
        "nodes": [share.model_dump(mode="json") for share in record.nodes],
        "image_id": record.image_id,
        "fork": record.fork.model_dump(mode="json") if record.fork else None,
        "paths": {
            "state": str(files.directory),
            "run": str(paths.runtime(record.uid).directory),
            "console_log": str(files.console_log),
            "qemu_log": str(files.qemu_log),
        },
        "revision": view.revision,
    }
