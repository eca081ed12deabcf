"""QMP commands as typed functions, one each; `SCHEMA` lists what they rely on, and a test checks it
against the installed QEMU's own schema (query-qmp-schema)."""

from __future__ import annotations

import os
from typing import Any, Final

from innkeeper.engine.base import RunState
from innkeeper.engine.qemu.qmp import Monitor
from innkeeper.errors import EngineError, Unsupported

# command -> the arguments we send; events -> the members we read.
SCHEMA: Final[dict[str, tuple[str, ...]]] = {
    "query-status": (),
    "stop": (),
    "cont": (),
    "quit": (),
    "system_powerdown": (),
    "query-chardev": (),
    "add-fd": ("fdset-id", "opaque"),
    "remove-fd": ("fdset-id", "fd"),
    "screendump": ("filename", "format"),
    "getfd": ("fdname",),
    "chardev-add": ("id", "backend"),
    "migrate-set-capabilities": ("capabilities",),
    "migrate": ("uri",),
    "migrate-incoming": ("uri",),
    "migrate-set-parameters": ("max-bandwidth",),
    "migrate_cancel": (),
    "query-migrate": (),
    "query-hotpluggable-cpus": (),
    "query-cpus-fast": (),
    "device_add": ("driver", "id"),
    "device_del": ("id",),
    "object-add": ("qom-type", "id"),
    "object-del": ("id",),
    "query-memory-devices": (),
    "query-acpi-ospm-status": (),
    "query-iothreads": (),
    "query-block": (),
    "query-blockstats": (),
    "block_set_io_throttle": (
        "id", "group", "iops_size",
        "bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr",
        "bps_max", "bps_rd_max", "bps_wr_max", "iops_max", "iops_rd_max", "iops_wr_max",
        "bps_max_length", "bps_rd_max_length", "bps_wr_max_length",
        "iops_max_length", "iops_rd_max_length", "iops_wr_max_length",
    ),
    "query-stats": ("target", "providers"),
    "query-balloon": (),
    "balloon": ("value",),
    "qom-get": ("path", "property"),
    "qom-set": ("path", "property", "value"),
}  # fmt: skip
EVENTS: Final[dict[str, tuple[str, ...]]] = {
    "SHUTDOWN": ("guest", "reason"),
    "RESET": ("guest", "reason"),
    "STOP": (),
    "RESUME": (),
    "GUEST_PANICKED": ("action",),
    "VSERPORT_CHANGE": ("id", "open"),
    "DEVICE_DELETED": ("device",),
    "BALLOON_CHANGE": ("actual",),
    "BLOCK_IO_ERROR": ("nospace", "action", "reason", "node-name"),
}

# QAPI RunState -> ours. What is missing here (prelaunch, postmigrate, ...) stands still: PAUSED.
_RUN_STATES: Final = {
    "running": RunState.RUNNING,
    "inmigrate": RunState.INCOMING,
    "io-error": RunState.IO_ERROR,
    "guest-panicked": RunState.PANICKED,
    "internal-error": RunState.PANICKED,
    "shutdown": RunState.SHUT_DOWN,
}


async def query_status(monitor: Monitor, deadline_s: float = 5.0) -> RunState:
    answer = await monitor.execute("query-status", deadline_s=deadline_s)
    return _RUN_STATES.get(str(_member(answer, "status")), RunState.PAUSED)


async def handed_over(monitor: Monitor) -> bool:
    """Whether its state was written or sent elsewhere, so that its disks are inactive."""
    return bool(_member(await monitor.execute("query-status"), "status") == "postmigrate")


async def agent_port_open(monitor: Monitor) -> bool:
    """Whether the guest has the agent's port open, as the chardev's front end sees it."""
    for chardev in await monitor.execute("query-chardev"):
        if chardev.get("label") == "agent":
            return bool(chardev.get("frontend-open"))
    return False


async def screendump(monitor: Monitor) -> bytes:
    """The first display as PNG. QEMU writes into a memory file of ours: it needs no right to create
    any. Raises Unsupported when the VM has no display."""
    memory = os.memfd_create("screenshot")
    writer = -1
    try:
        # QEMU looks in the set for a descriptor with the very access mode it wants: write only.
        writer = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY)
        await monitor.send_descriptor(writer)
        added = await monitor.execute("add-fd", {"opaque": "screenshot"})
        fdset, fd = int(_member(added, "fdset-id")), int(_member(added, "fd"))
        try:
            await monitor.execute("screendump", {"filename": f"/dev/fdset/{fdset}", "format": "png"})
        except EngineError as error:
            if "graphical" in str(error) or "console" in str(error):
                raise Unsupported(
                    "This instance has no display", hint="give it one with display.vga: std"
                ) from error
            raise
        finally:
            await monitor.execute("remove-fd", {"fdset-id": fdset, "fd": fd})
        return os.pread(memory, os.fstat(memory).st_size, 0)
    finally:
        os.close(memory)
        if writer >= 0:
            os.close(writer)


def _member(answer: Any, name: str) -> Any:
    try:
        return answer[name]
    except (KeyError, TypeError):
        raise EngineError(f"QEMU's answer lacks {name!r}") from None
