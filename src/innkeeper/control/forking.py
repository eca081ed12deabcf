"""Whether an instance can be forked now, and its host has room for the copies. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from pydantic import ValidationError

from innkeeper.control.lifecycle import is_active
from innkeeper.control.placement import QEMU_OVERHEAD_BYTES
from innkeeper.errors import BadRequest, NoCapacity, WrongState
from innkeeper.spec.finding import Finding, asked, block, ok, warn
from innkeeper.spec.host import HostRecord
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, InstanceStatus, State, private_bytes
from innkeeper.units import format_size, human_size

# QEMU of a copy: private memory measured 20-45 MB under TCG.
COPY_OVERHEAD_BYTES: Final = QEMU_OVERHEAD_BYTES // 2
IN_BETWEEN: Final = (State.STARTING, State.STOPPING, State.HUNG)


def state(record: InstanceRecord, status: InstanceStatus, *, boots: bool = False) -> Iterator[Finding]:
    """Whether there is a moment to take now; `boots`: of a clone, whose disks alone count."""
    active = is_active(record, status)
    if not active and boots:
        yield ok(f"{record.name} is {status.state}: its disks are copied as they are")
    elif not active:
        yield ok(f"{record.name} is {status.state}: the copies are linked clones, which boot")
    elif status.template and not boots:
        yield ok(f"{record.name} is a template: the copies start from the moment it stands still at")
    elif status.state in IN_BETWEEN:
        what = f"{record.name} is {status.state}: it cannot be copied now"
        yield block(WrongState(what, hint="try again in a moment"))
    elif boots:
        fix = f"for a clean copy, stop it first: inn stop {record.name}"
        yield warn(f"{record.name} is {status.state}: the copy's disks are as after a power cut", fix)
    else:
        yield ok(f"{record.name} is {status.state}: the copies go on from this moment")


def room(parent: InstanceRecord, count: int, hosts: Sequence[HostRecord]) -> Iterator[Finding]:
    """Whether the copies' private pages and their QEMUs fit the parent's host."""
    host = next((one for one in hosts if one.name == parent.host), None)
    if host is None:
        return
    memory = parent.spec.memory
    if memory.hugepages:
        yield huge_room(parent, count, host)
    ram = 0 if memory.hugepages else private_bytes(memory.size)
    each = ram + COPY_OVERHEAD_BYTES
    available = host.facts.memory_available_bytes
    copies = f"{count} fork{'s' if count > 1 else ''}"
    said = (
        f"{copies} of {parent.name} may take {human_size(each * count)} of memory "
        f"({human_size(each)} each for what they write and for QEMU), {human_size(available)} is "
        f"available on {host.name}"
    )
    if each * count > available:
        hint = f"make at most {available // each}, or stop other instances"
        yield block(NoCapacity(said, hint=hint))
    else:
        yield ok(said)


def cpus(parent: InstanceRecord, wanted: int | None, *, live: bool) -> Iterator[Finding]:
    """Whether the copies can have that many vCPUs; None: as many as the parent."""
    has = parent.spec.cpu.count
    if wanted is None or wanted == has:
        return
    if live:
        own = f"{has} vCPU{'s' if has > 1 else ''}"
        what = f"{parent.name} runs, and its copies go on from there with its {own}, not with {wanted}"
        hint = f"stop it first (inn stop {parent.name}), or change a copy: inn set COPY cpu.count={wanted}"
        yield block(WrongState(what, hint=hint))
    else:
        yield from asked(lambda: with_cpus(parent.spec, wanted), f"each copy gets {wanted} vCPUs")


def with_cpus(spec: InstanceSpec, wanted: int | None) -> InstanceSpec:
    """The spec with so many vCPUs. Raises BadRequest when its topology or its NUMA nodes do not fit them."""
    if wanted is None or wanted == spec.cpu.count:
        return spec
    try:
        return InstanceSpec.model_validate(
            spec.model_dump() | {"cpu": spec.cpu.model_dump() | {"count": wanted}}
        )
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise BadRequest(f"The copies cannot have {wanted} vCPUs: {said}") from error


def huge_room(parent: InstanceRecord, count: int, host: HostRecord) -> Finding:
    """Each copy has all of its huge pages promised, and so has the process the parent goes on in: the kernel
    ends a guest that writes to one which is not there."""
    page = parent.spec.memory.page_bytes
    each = parent.spec.memory.size // page
    pools = [pool for node in host.facts.numa for pool in node.hugepages if pool.page_bytes == page]
    free = sum(pool.free - pool.reserved for pool in pools)
    needed = each * (count + 1)
    copies = f"{count} fork{'s' if count > 1 else ''}"
    said = (
        f"{copies} of {parent.name} need {needed} huge pages of {format_size(page)} ({each} each, and "
        f"as many for {parent.name} itself), {free} are free on {host.name}"
    )
    if needed > free:
        hint = f"{needed - free} are missing: inn host set hugepages.{format_size(page)}=N"
        return block(NoCapacity(said, hint=hint, details={"missing": needed - free}))
    return ok(said)
