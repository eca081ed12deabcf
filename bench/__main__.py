"""`python -m bench [NAME...] [--quick] [--out DIR]`: run benchmarks, write JSON, print the table."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Final

from bench.lib import facts, report
from bench.lib.lab import Lab, lab
from bench.lib.plot import write_charts
from bench.lib.sample import Sample

# In the order they run: those that load the machine most come last.
BENCHMARKS: Final = {
    "cli": "start-up of inn, list of 0 and 500 instances, API reads; beside virsh",
    "store": "transactions, list of 500, latency of a watch",
    "run": "inn run tiny to guest ready; beside the same QEMU by hand and libvirt",
    "verbs": "start until running, kill until gone; beside virsh",
    "fork": "one, 50 and 100 forks of a running VM, depth, pause; beside the recipe by hand",
    "snapshot": "snapshot and restore with memory; save and restore beside virsh",
    "inspect": "each inspection of a running VM of 1 GiB, and how long a busy vCPU stands still for it",
    "exec": "inn exec, and copying both ways",
    "guestio": "disk and network inside the guest; beside QEMU tuned by hand",
    "balloon": "an idle guest's memory taken under pressure, and given back; deciding for 1,000 VMs",
    "qos_cpu": "limits, reservations and shares of CPU time of 2, 4 and 8 busy VMs, and how soon they hold",
    "qos_disk": "limits of disks: how near, bursts, shared by two disks, how soon a change holds",
    "density": "idle forks with a guaranteed working set that the machine carries, before and after KSM",
    "sampling": "reading the counters of 100 VMs, CPU time of one core",
    "daemon": "memory, idle CPU, re-adoption of 100 VMs; beside libvirtd",
    "lab": "nested and shadow paging, page sizes, TCG and KVM in the nested lab; only when named",
}
# Takes a VM of 4 GiB and many minutes, and an image that is built the first time.
ONLY_WHEN_NAMED: Final = {"lab"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of: {', '.join(BENCHMARKS)} (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="few iterations: to see that it works")
    parser.add_argument("--out", type=Path, default=facts.REPOSITORY / "bench/results", metavar="DIR")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]}; there are: {', '.join(BENCHMARKS)}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = [name for name in BENCHMARKS if name in (given.names or BENCHMARKS.keys() - ONLY_WHEN_NAMED)]
    found = facts.gather()
    samples: list[Sample] = []
    failed: dict[str, str] = {}
    with lab(quick=given.quick) as where:
        for name in chosen:
            samples += _measure(name, where, failed)
    print(report.head(found), "", report.table(samples), sep="\n")
    for name, why in failed.items():
        print(f"{name} failed: {why}")
    written = report.write(given.out, found, samples, failed)
    plots = write_charts(written.parent / "plots", written.stem, samples)
    print(
        f"\nwritten to {written}; charts: {', '.join(path.name for path in plots)} in {written.parent}/plots"
    )
    return 1 if failed else 0


def _measure(name: str, where: Lab, failed: dict[str, str]) -> list[Sample]:
    """One benchmark that fails must not cost the results of the others."""
    print(f"{name}: {BENCHMARKS[name]}", file=sys.stderr, flush=True)
    begun = time.monotonic()
    try:
        result = importlib.import_module(f"bench.{name}").run(where)
        samples: list[Sample] = asyncio.run(result) if inspect.iscoroutine(result) else result
    except Exception as error:
        traceback.print_exc()
        failed[name] = f"{type(error).__name__}: {error}"
        return []
    print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return samples


sys.exit(main())
