"""Huge pages that would pay: a large, busy VM under KVM that lies in small ones. Pure.

With nested paging a miss of the TLB walks both the guest's tables and the host's, up to 24 reads instead of 4
(R. Bhargava et al., Accelerating Two-Dimensional Page Walks for Virtualized Systems, ASPLOS 2008); huge pages
on the host save a part of each walk. An emulated guest's addresses go through QEMU's software TLB: no gain.
"""

from __future__ import annotations

from innkeeper.control.advice import thresholds as T
from innkeeper.control.advice.evidence import Evidence, Said, advised, mean, percent
from innkeeper.spec.advice import Withheld
from innkeeper.spec.memory import THP_OF_FILES, THP_OF_FILES_GIVEN
from innkeeper.units import MiB, human_size

_PAGE = 2 * MiB


def pages(evidence: Evidence) -> Said:
    seen, spec = evidence.seen, evidence.spec.memory
    if seen is None or seen.memory.resident is None or spec.hugepages:
        return []
    size = evidence.status.memory.size
    if size < T.LARGE_BYTES:
        return []
    rows = evidence.of_size("given_memory", size)
    if not evidence.enough(rows):
        return [evidence.too_little("pages", rows)]
    busy, huge = mean(rows, "demand") or 0.0, seen.memory.huge
    if busy < T.BUSY_CPUS or seen.memory.resident < T.LARGE_BYTES:
        return []
    if evidence.status.accelerator != "kvm":
        return [
            Withheld(kind="pages", reason="fits", what="it is emulated: huge pages of the host gain nothing")
        ]
    if huge is None:
        return [
            Withheld(kind="pages", reason="unknown", what="how much of it is in huge pages is not known yet")
        ]
    share = huge / seen.memory.resident
    if share >= T.SMALL_PAGES:
        said = f"{percent(share)} of {human_size(seen.memory.resident)} are in huge pages"
        return [Withheld(kind="pages", reason="fits", what=said)]
    said = (
        f"{human_size(seen.memory.resident)} in use, {percent(share)} of it in huge pages, "
        f"{busy:.1f} CPUs busy on average"
    )
    free = _free(evidence)
    if free * _PAGE >= size and not size % _PAGE:
        change, how = (
            {"memory.hugepages": "2MiB"},
            f"of the pool's {free} free ones of 2 MiB it takes {size // _PAGE}",
        )
    elif spec.thp == "auto" and evidence.host and evidence.host.thp_of_files in THP_OF_FILES_GIVEN:
        change, how = {"memory.thp": "always"}, "transparent ones, as far as the host finds them"
    else:
        what = f"{said}; the host's pool has {free} pages of 2 MiB free"
        if spec.thp == "auto":  # with thp=always it would not start there
            what += f", and it makes none of guest RAM by itself (as root: echo advise > /{THP_OF_FILES})"
        return [Withheld(kind="pages", reason="host", what=what)]
    return [
        advised(
            evidence,
            "pages",
            "small-pages",
            change,
            what="its memory in huge pages",
            seen=said,
            effect=f"fewer and shorter page walks: {how}; python -m bench lab measures what that is worth",
        )
    ]


def _free(evidence: Evidence) -> int:
    nodes = evidence.host.numa if evidence.host else ()
    return sum(
        pool.free - pool.reserved for node in nodes for pool in node.hugepages if pool.page_bytes == _PAGE
    )
