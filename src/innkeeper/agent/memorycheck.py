"""Whether this host can keep what an instance's memory asks for beside its size: rules of a start and of a
fork; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from innkeeper.agent import sysfs
from innkeeper.agent.context import HostView
from innkeeper.drivers.inherit import BESIDE_RAM_BYTES, lockable_bytes
from innkeeper.errors import NoCapacity, Unsupported
from innkeeper.spec.finding import Finding, block, ok, warn
from innkeeper.spec.memory import THP_OF_FILES, THP_OF_FILES_GIVEN, Memory
from innkeeper.units import format_size, human_size


def of_start(memory: Memory, host: HostView, root: Path = sysfs.HOST_ROOT) -> Iterator[Finding]:
    if memory.hugepages:
        yield pool_has(host, memory, memory.size, "it")
    if memory.locked:
        yield _lockable(memory.size)
    if memory.thp == "always":
        yield _transparent(root)


def of_fork(memory: Memory, host: HostView, name: str) -> Iterator[Finding]:
    """What a process that goes on from this VM's RAM needs, or cannot have."""
    if memory.locked:
        yield block(
            Unsupported(
                f"The memory of {name} is locked: what is shared copy-on-write is not, and would not stay so",
                hint=f"inn set {name} memory.locked=false, restart it, then fork it",
            )
        )
    elif memory.hugepages:
        yield pool_has(host, memory, memory.size, f"the process that {name} goes on in")
    elif memory.prealloc:
        yield warn(
            f"the RAM of {name} was taken at its start; what it writes after the fork is taken anew",
            "it gets RAM of its own again as soon as the host has room",
        )


def pool_has(host: HostView, memory: Memory, needed: int, who: str) -> Finding:
    """Every process that has a view of huge pages has all of them promised: the kernel ends a guest that
    writes to a page the pool does not have."""
    page = memory.page_bytes
    pages, free = needed // page, host.hugepages_free(page)
    said = f"{pages} huge pages of {format_size(page)} for {who}, {max(free, 0)} are free"
    if pages > free:
        return block(
            NoCapacity(
                f"Not enough huge pages on {host.name}: {said}",
                hint=f"{pages - free} are missing: inn host set hugepages.{memory.hugepages}=N",
                details={"missing": pages - free},
            )
        )
    return ok(said)


def _lockable(size: int) -> Finding:
    limit, needed = lockable_bytes(), size + BESIDE_RAM_BYTES
    if limit is not None and limit < needed:
        return block(
            Unsupported(
                f"memory.locked needs {human_size(needed)} of locked memory, and the daemon's limit "
                f"(RLIMIT_MEMLOCK) is {human_size(limit)}",
                hint="raise it (ulimit -l, or LimitMEMLOCK= of the unit), or run the daemon as root",
            )
        )
    return ok("its memory can be locked")


def _transparent(root: Path) -> Finding:
    mode = sysfs.chosen(sysfs.read_text(root / THP_OF_FILES))
    if mode not in THP_OF_FILES_GIVEN:
        said = f"is {mode}" if mode else "is not there"
        return block(
            Unsupported(
                "memory.thp=always: this host makes no transparent huge pages of memory files "
                f"(/{THP_OF_FILES} {said})",
                hint=f"as root: echo advise > /{THP_OF_FILES}",
            )
        )
    return ok("the host makes transparent huge pages of guest RAM")
