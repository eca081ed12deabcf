"""What a host has promised already, and whether an instance may be made as it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from pydantic import ValidationError

from innkeeper.control.lifecycle import is_active
from innkeeper.control.numa import Promise
from innkeeper.control.placement import Claim, memory_needed, promise_of
from innkeeper.errors import SpecError
from innkeeper.spec.host import HostRecord
from innkeeper.spec.image import ImageRecord
from innkeeper.spec.instance import InstanceSpec, Machine
from innkeeper.spec.numa import GuestNuma, NodeShare
from innkeeper.store.view import InstanceView
from innkeeper.units import MiB, format_size

# Linux on x86 sets this aside at boot where memory may lie above 4 GiB, as that which comes later does
# (kernel/dma/swiotlb.c, IO_TLB_DEFAULT_SIZE).
SWIOTLB_BYTES: Final = 64 * MiB


def open_claims(
    instances: Iterable[InstanceView], hosts: Sequence[HostRecord], *, but: str = ""
) -> list[Claim]:
    """A claim for each active instance (other than `but`) which the facts of its host do not show yet.

    What had started when the facts were taken is in them as memory no longer available; counting it
    once more would refuse what fits, and not counting the others would promise the same memory twice.
    """
    observed_at = {host.name: host.observed_at for host in hosts}
    return [
        Claim(view.record.host, memory_needed(view.record.spec))
        for view in instances
        if view.name != but
        and is_active(view.record, view.status)
        and not 0 < view.status.started_at < observed_at.get(view.record.host, 0.0)
    ]


def node_promises(
    instances: Iterable[InstanceView], hosts: Sequence[HostRecord], *, but: str = ""
) -> dict[str, list[Promise]]:
    """What each host gave its active instances of its NUMA nodes. Of one that was placed before its host's
    nodes were known: as much of each."""
    facts = {host.name: host for host in hosts}
    found: dict[str, list[Promise]] = {}
    for view in instances:
        host = facts.get(view.record.host)
        if host is None or view.name == but or not is_active(view.record, view.status):
            continue
        spec, nodes = view.record.spec, host.facts.numa
        shown = 0 < view.status.started_at < host.observed_at
        shares = view.record.nodes or tuple(
            NodeShare(node=node.id, memory_bytes=spec.memory.size // len(nodes)) for node in nodes
        )
        found.setdefault(host.name, []).extend(promise_of(share, spec, shown=shown) for share in shares)
    return found


def fitted_to_image(spec: InstanceSpec, image: ImageRecord) -> InstanceSpec:
    """The spec with the machine and the memory its image needs where none was asked for. Raises SpecError
    when another architecture, or less memory, was asked for."""
    spec = _with_architecture(spec, image)
    least, why = image.min_memory_bytes, ""
    if spec.memory.max is not None and least:
        least, why = least + SWIOTLB_BYTES, " beside room for more (memory.max)"
    if spec.memory.size >= least:
        return spec
    if "memory" in spec.model_fields_set and "size" in spec.memory.model_fields_set:
        raise SpecError(
            f"{format_size(spec.memory.size)} of memory is too little for image {image.name}, "
            f"which needs {format_size(least)}{why}",
            hint=f"use --memory {format_size(least)} or more",
            details={"field": ["spec", "memory", "size"]},
        )
    page = spec.memory.page_bytes or 1
    size = -(-least // page) * page
    memory = spec.memory.model_copy(update={"size": size})
    if isinstance(spec.numa, GuestNuma):
        try:
            spec.numa.check(spec.cpu.count, size)
        except ValueError as error:
            raise SpecError(
                f"Image {image.name} needs {format_size(least)}, and {error}", hint="give memory.size, too"
            ) from None
    return spec.model_copy(update={"memory": memory})


def _with_architecture(spec: InstanceSpec, image: ImageRecord) -> InstanceSpec:
    machine = spec.machine
    if machine.architecture == image.architecture:
        return spec
    if "architecture" in machine.model_fields_set:
        raise SpecError(
            f"Image {image.name} is for {image.architecture}, not for {machine.architecture}",
            hint="leave out machine.architecture (--arch): it follows from the image",
            details={"field": ["spec", "machine", "architecture"]},
        )
    asked = {name: getattr(machine, name) for name in machine.model_fields_set}
    try:
        own = Machine.model_validate({**asked, "architecture": image.architecture})
    except ValidationError as error:
        raise SpecError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    return spec.model_copy(update={"machine": own})
