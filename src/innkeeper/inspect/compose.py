"""Guest-virtual to host-physical in one step: what the two ways of hardware would hold for a page.

With shadow page tables the hypervisor keeps, for each page table of the guest, one of its own that maps
guest-virtual addresses straight to host frames. With nested paging (Intel EPT, AMD NPT) the processor goes
through the guest's own tables and, for every guest-physical address on the way, through a second set.
Sources: Intel SDM vol. 3C, 29.3 (EPT); AMD APM vol. 2, 15.25 (nested paging); Linux's
Documentation/virt/kvm/x86/mmu.rst (shadow paging, and why an entry is read-only).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from innkeeper.inspect.paging import Page

_LEVELS_4: Final = 4  # KVM uses 4-level EPT and NPT unless the host's physical addresses need more
_PAGE_SHIFT, _LEVEL_BITS = 12, 9
# Of shadow tables, which are of the processor's widest format: a guest's 4 MiB page takes two entries; and of
# nested ones.
SIZES: Final = (1 << 12, 1 << 21, 1 << 30)


@dataclass(frozen=True, slots=True)
class HostPage:
    """What is behind one guest-physical page on the host; `frame` is its host-physical address, None when
    the kernel does not say. `writable`: without copying it first."""

    base: int  # guest-physical, of the host's page
    bytes: int
    present: bool
    writable: bool
    frame: int | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry that maps a page; `why` it may do less than the guest's own tables say."""

    base: int  # of what it translates: guest-virtual, or guest-physical for EPT
    target: int | None  # host-physical
    bytes: int
    writable: bool
    user: bool
    executable: bool
    present: bool
    why: tuple[str, ...] = ()


def shadow_entry(address: int, page: Page, host: HostPage) -> Entry:
    """The entry of a shadow page table: the smaller page of the two, and the rights that both give."""
    size = max(one for one in SIZES if one <= min(page.bytes, host.bytes))
    base = address & -size
    why = []
    if page.writable and not page.dirty:
        why.append("the guest's entry is not dirty yet: the first write must be seen, to set its D bit")
    if page.writable and host.present and not host.writable:
        why.append("the host's page is shared: a write copies it first")
    if not page.accessed:
        why.append("the guest's entry is not accessed yet: the first access must be seen, to set its A bit")
    if not host.present:
        why.append("the host has no page there yet: the first access brings it in")
    return Entry(
        base=base,
        target=_inside(host, page.physical & -size),
        bytes=size,
        writable=page.writable and page.dirty and host.writable,
        user=page.user,
        executable=page.executable,
        present=host.present and page.accessed,
        why=tuple(why),
    )


def nested_entry(host: HostPage) -> Entry:
    """The entry of EPT or NPT: the host's page alone decides; the guest's rights are in its own tables."""
    why = []
    if host.present and not host.writable:
        why.append("the host's page is shared: a write copies it first")
    if not host.present:
        why.append("the host has no page there yet: the first access brings it in")
    return Entry(host.base, host.frame, host.bytes, host.writable, True, True, host.present, tuple(why))


def _inside(host: HostPage, physical: int) -> int | None:
    return None if host.frame is None else host.frame + (physical - host.base)


def levels_of(page_bytes: int, levels: int = _LEVELS_4) -> int:
    """Tables that are read to reach a page of that size."""
    shift = page_bytes.bit_length() - 1
    return levels - (shift - _PAGE_SHIFT) // _LEVEL_BITS


def nested_references(table_pages: Sequence[int], page_bytes: int) -> int:
    """Memory references of a whole two-dimensional walk, without any cache: for each guest table the way
    through EPT to it and its entry, then the way to the page. 24 for 4 + 4 levels of 4 KiB. `table_pages`
    are the sizes of the host pages that the guest's tables lie in."""
    return sum(levels_of(one) + 1 for one in table_pages) + levels_of(page_bytes)


def shadow_references(entry_bytes: int, levels: int) -> int:
    """Those of a shadow walk: as many as the processor's own tables have levels. A guest without paging
    or with fewer levels is shadowed by at least three (PAE), which is what KVM uses."""
    return levels_of(entry_bytes, max(levels, 3))
