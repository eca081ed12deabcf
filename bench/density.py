"""Density: how many idle forks with a guaranteed working set the machine carries, before and after KSM.

Forks of one VM each write the same working set, as from the same program, and reserve as much. What one costs
is measured over all of them in QEMU's own account of private pages; how many fit follows from that and from
what the host has for VMs. `--quick` takes a few forks of `tiny`; else 16 of Debian.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.lib.lab import Lab
from bench.lib.sample import Sample
from innkeeper.units import MiB

WORKING_SET: Final = 16 * MiB
# The pages that ksmd takes at a time, and how long it may need for all of them twice: the first time it only
# notes what a page has (Documentation/admin-guide/mm/ksm.rst).
_MERGES_WITHIN_S: Final = 60.0
_QUIET_S: Final = 6.0


def carried(capacity: int, shared: int, each: float, guaranteed: int = 0) -> int:
    """How many fit into `capacity` bytes: beside what they share once, each takes what it costs, and never
    less than it is guaranteed."""
    return max(0, int((capacity - shared) // max(each, guaranteed, 1)))


def after_merging(each: float, saved: int, count: int) -> float:
    """What one costs when `saved` bytes of `count` were merged."""
    return max(0.0, each - saved / count)


def run(lab: Lab) -> list[Sample]:
    image, memory, count = ("tiny", 128, 3) if lab.quick else ("debian", 512, 16)
    client = lab.daemon.client
    lab.need_image(image)
    before = client.host.show()["settings"]["ksm"]
    with ExitStack() as stack:
        stack.callback(lambda: client.host.set(ksm=before))
        client.host.set(ksm="always")  # so that forks ask for it; nothing is alike yet
        spec = {
            "image": image,
            "memory": {"size": f"{memory}MiB"},
            "qos": {"memory": {"reservation": WORKING_SET}},
        }
        parent = client.instances.create(spec, name="density", start=True, wait="ready")
        stack.callback(lambda: parent.remove(force=True))
        parent.exec(["sh", "-c", f"head -c {WORKING_SET} /dev/urandom >/working-set; sync"])
        names = [one["name"] for one in parent.fork(count=count)["instances"]]
        for name in names:
            stack.callback(partial(client.instances.handle(name).remove, force=True))
        for name in names:
            client.instances.handle(name).exec(["sh", "-c", "mkdir -p /run && cp /working-set /run/own"])
        pids = [client.instances.get_data(name)["pid"] for name in names]
        owed = client.host.show()["overcommit"]["memory"]
        alone = [private_bytes(pid) for pid in pids]
        saved = _merged(lab, 15.0 if lab.quick else _MERGES_WITHIN_S)
    return samples(alone, saved, owed["capacity"], memory * MiB)


def samples(alone: Sequence[int], saved: int, capacity: int, shared: int) -> list[Sample]:
    """`alone`: private bytes of each fork before its pages were merged."""
    count = len(alone)
    each = sum(alone) / count
    merged = after_merging(each, saved, count)
    note = f"by {count} forks, each with a working set of {WORKING_SET // MiB} MiB"
    kept = "reckoned from what one costs, and never less than its reservation"
    return [
        Sample("density.private", "MiB", [one / MiB for one in alone], note=note),
        Sample("density.private-merged", "MiB", [merged / MiB], note=f"{note}; less what KSM saved"),
        Sample("density.forks", "VMs", [carried(capacity, shared, each, WORKING_SET)], note=kept),
        Sample("density.forks-merged", "VMs", [carried(capacity, shared, merged, WORKING_SET)], note=kept),
    ]


def private_bytes(pid: int) -> int:
    """Pages that only this process has, in memory or in swap (proc_pid_smaps_rollup(5))."""
    return rollup_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text())


def rollup_bytes(text: str) -> int:
    wanted = ("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:", "SwapPss:")
    lines = (line.split() for line in text.splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words and words[0] in wanted)


def _merged(lab: Lab, within_s: float) -> int:
    """What is saved once that has stopped growing."""
    begun = grown = time.monotonic()
    most = 0
    while (now := time.monotonic()) - grown < _QUIET_S * 2 and now - begun < within_s:
        report: dict[str, Any] = lab.daemon.client.host.show()["ksm"] or {}
        if report.get("saved_bytes", 0) > most * 1.02:
            most, grown = report["saved_bytes"], now
        time.sleep(0.5)
    return most
