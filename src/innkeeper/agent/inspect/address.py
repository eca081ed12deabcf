"""One address of a guest, followed all the way down to the host's memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from innkeeper.agent import sysfs
from innkeeper.agent.inspect.access import GuestMemory, HostPages, walked
from innkeeper.agent.inspect.cpus import one_of, registers_of, summary
from innkeeper.drivers.procfs import PAGE
from innkeeper.engine.inspection import AddressSpace, Inspection, Region
from innkeeper.errors import BadRequest
from innkeeper.inspect import compose
from innkeeper.inspect.paging import Mode, Page, Unreadable, Walk
from innkeeper.inspect.registers import Place, Registers
from innkeeper.spec.inspection import (
    AddressReport,
    Composed,
    EntryView,
    HostPlace,
    PageView,
    Slot,
    WalkStep,
    WalkView,
)

_CONTENT_BYTES: Final = 16
_LEVELS: Final = {Mode.LEGACY: 2, Mode.PAE: 3, Mode.LONG_4: 4, Mode.LONG_5: 5}


@dataclass
class _View:
    """All that one answer is made from: of one moment as far as registers go."""

    vm: Inspection
    space: AddressSpace
    memory: GuestMemory
    host: HostPages

    def behind(self, physical: int) -> HostPlace | None:
        region = self.space.at(physical)
        if region is None or not region.is_memory:
            return None
        return self.host.at(region.host + physical - region.start)


async def inspect_address(
    name: str, vm: Inspection, pid: int, accelerator: str, place: Place, cpu: int, asked: str
) -> AddressReport:
    """Raises NotFound for a vCPU that is not there, Unsupported for a guest that is no x86, EngineError
    when QEMU does not answer. An address that is not mapped is no error: the walk says where it ended."""
    begun = time.monotonic()
    registers = one_of(await registers_of(vm), cpu)
    number = place.resolve(registers)
    space = await vm.address_space(smm_of=cpu if registers.in_smm else None)
    with GuestMemory(pid, space) as memory:
        view = _View(vm, space, memory, HostPages(pid))
        walk = None if place.physical else await _walk(view, registers, number)
        physical = number if walk is None else (walk.page.physical if walk.page else None)
        region = None if physical is None else space.at(physical)
        host = None if physical is None else view.behind(physical)
        steps = [_step(view, one) for one in _steps(walk)]
        return AddressReport(
            name=name,
            asked=asked,
            cpu=summary(registers),
            virtual=None if walk is None else hex(number),
            physical=None if physical is None else hex(physical),
            walk=_walk_view(walk, steps),
            slot=slot_of(region, space) if region and region.is_memory else None,
            device=region.name if region and not region.is_memory else "",
            host=host,
            composed=_composed(walk, steps, region, physical, host, accelerator),
            content=_content(view, physical, region, host),
            took_ms=round((time.monotonic() - begun) * 1000, 2),
        )


async def _walk(view: _View, registers: Registers, address: int) -> Walk:
    vcpu = next((one for one in await view.vm.vcpus() if one.index == registers.cpu), None)
    if vcpu is None:
        raise BadRequest(f"vCPU {registers.cpu} was unplugged meanwhile", hint="try again")
    bits = await view.vm.physical_bits(vcpu)
    state = registers.paging(bits, gigabyte_pages=await view.vm.gigabyte_pages(vcpu))
    return await walked(state, address, view.memory, view.space, view.vm)


def slot_of(region: Region, space: AddressSpace) -> Slot:
    return Slot(
        name=region.name,
        kind=region.kind,
        first=hex(region.start),
        last=hex(region.end - 1),
        bytes=region.end - region.start,
        offset=region.offset,
        host_address=hex(region.host),
        guest_ram=region.name in space.ram_bytes,
    )


def _steps(walk: Walk | None) -> list[tuple[int, WalkStep]]:
    return [] if walk is None else [
        (
            one.entry_address,
            WalkStep(
                level=one.level,
                index=one.index,
                entry_address=hex(one.entry_address),
                entry=hex(one.entry),
                flags=list(one.flags),
                points_to=hex(one.points_to),
                page_bytes=one.page_bytes,
                host=None,
            ),
        )
        for one in walk.steps
    ]  # fmt: skip


def _step(view: _View, step: tuple[int, WalkStep]) -> WalkStep:
    address, one = step
    return one.model_copy(update={"host": view.behind(address)})


def _walk_view(walk: Walk | None, steps: list[WalkStep]) -> WalkView | None:
    if walk is None:
        return None
    return WalkView(
        paging=walk.mode.value,
        root=hex(walk.root),
        steps=steps,
        end=walk.end.value,
        level=walk.level,
        detail=walk.detail,
        page=_page_view(walk.page) if walk.page else None,
    )


def _page_view(page: Page) -> PageView:
    return PageView(
        base=hex(page.base),
        bytes=page.bytes,
        writable=page.writable,
        user=page.user,
        executable=page.executable,
        is_global=page.is_global,
        accessed=page.accessed,
        dirty=page.dirty,
    )


def _content(view: _View, physical: int | None, region: Region | None, host: HostPlace | None) -> str:
    # To read what was never touched would give it a page.
    if physical is None or region is None or host is None or host.state == "untouched":
        return ""
    size = min(_CONTENT_BYTES, region.end - physical)
    try:
        return view.memory.read(physical, size).hex(" ")
    except (Unreadable, OSError):
        return ""


# -- the composed mapping --------------------------------------------------------------------------


def _composed(
    walk: Walk | None,
    steps: list[WalkStep],
    region: Region | None,
    physical: int | None,
    host: HostPlace | None,
    accelerator: str,
) -> Composed | None:
    if region is None or physical is None or host is None:
        return None
    page = host_page(region, physical, host)
    shadow = None
    shadow_cost = None
    if walk is not None and walk.page is not None:
        shadow = compose.shadow_entry(walk.address, walk.page, page)
        shadow_cost = compose.shadow_references(shadow.bytes, _LEVELS.get(walk.mode, 0))
    tables = [one.host.page_bytes for one in steps if one.host]
    used, note = paging_used(accelerator)
    return Composed(
        shadow=_entry_view(shadow) if shadow else None,
        nested=_entry_view(compose.nested_entry(page)),
        shadow_references=shadow_cost,
        nested_references=compose.nested_references(tables, page.bytes) if walk else None,
        used=used,
        note=note,
    )


def host_page(region: Region, physical: int, host: HostPlace) -> compose.HostPage:
    """The host's page, or the largest piece of it that the guest can have as one: where guest-physical and
    host-virtual addresses are aligned alike, and all of it is in the slot
    (Documentation/virt/kvm/x86/mmu.rst, large pages)."""
    at, size, base = int(host.address, 16), PAGE, physical & -PAGE
    for larger in (one for one in compose.SIZES if PAGE < one <= host.page_bytes):
        start = physical & -larger
        if (at - physical) % larger == 0 and region.start <= start and start + larger <= region.end:
            size, base = larger, start
    frame = None if host.physical is None else int(host.physical, 16) - (physical - base)
    return compose.HostPage(
        base=base,
        bytes=size,
        present=host.mapped,
        writable=host.mapped and host.state not in ("shared", "ksm") and region.kind == "ram",
        frame=frame,
    )


def _entry_view(entry: compose.Entry) -> EntryView:
    return EntryView(
        source=hex(entry.base),
        target=None if entry.target is None else hex(entry.target),
        bytes=entry.bytes,
        present=entry.present,
        writable=entry.writable,
        user=entry.user,
        executable=entry.executable,
        why=list(entry.why),
    )


def paging_used(accelerator: str, root: Path = sysfs.HOST_ROOT) -> tuple[str, str]:
    """How this VM's memory is really translated, and a sentence about it."""
    if accelerator != "kvm":
        return "softmmu", (
            "under TCG neither exists: QEMU walks the guest's tables in software and keeps guest-virtual to "
            "host-virtual in a TLB of its own"
        )
    paging = sysfs.guest_paging(root)
    if not paging:
        return "unknown", "KVM does not say whether it uses nested paging"
    if paging == "shadow":
        return "shadow", "KVM keeps shadow page tables: nested paging is off or missing"
    return paging, "the processor walks the guest's tables and KVM's, both"
