"""Looking into a running VM of 1 GiB, of which some 500 MiB are in use: how long each inspection takes, and
how long a busy vCPU stands still for it.

A vCPU whose guest never sleeps runs or waits for a CPU of the host; what is left of the time it was held up.
That is counted over many inspections, and over as long without any, since a busy host and QEMU's own
main loop hold it up as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from bench.lib.lab import Lab
from bench.lib.sample import Budget, Sample, interleave, timed_ms
from innkeeper.client.instance import Instance
from innkeeper.drivers import procfs

MAP = Budget(300)
ADDRESS = Budget(60)
PAUSE = Budget(5)
SPEC = {"image": "tiny", "memory": {"size": "1GiB"}, "disks": [{"name": "data", "size": "64MiB"}]}
_FILL = "head -c 419430400 /dev/zero | tr '\\0' x >/filled"
_BUSY = "setsid sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null &"
_SETTLE_S = 1.0


def run(lab: Lab) -> list[Sample]:
    vm = lab.daemon.client.instances.create(SPEC, name="seen", start=True, wait="ready")
    try:
        vm.exec(["sh", "-c", _FILL], timeout_s=120)
        time.sleep(_SETTLE_S)
        kinds: Mapping[str, Callable[[], object]] = {
            "memory": vm.inspect_memory,
            "numa": lambda: vm.inspect_memory(numa=True),
            "address": lambda: vm.inspect_memory("rip"),
            "cpu": vm.inspect_cpu,
            "disk": vm.inspect_disk,
            "net": vm.inspect_net,
        }
        budgets = {"memory": MAP, "address": ADDRESS}
        works = {name: lambda kind=kind: timed_ms(kind) for name, kind in kinds.items()}
        values = interleave(lab.count(30, 5), works)
        samples = [
            Sample(f"inspect.{name}", "ms", found, budgets.get(name), note="API")
            for name, found in values.items()
        ]
        vm.exec(["sh", "-c", _BUSY], timeout_s=30)
        return samples + _held_up(vm, kinds, lab.count(20, 4))
    finally:
        vm.remove(force=True)


def _held_up(vm: Instance, kinds: Mapping[str, Callable[[], object]], count: int) -> list[Sample]:
    time.sleep(_SETTLE_S)
    values: dict[str, list[float]] = {name: [] for name in (*kinds, "nothing")}
    pid, thread = vm.refresh().data["pid"], vm.inspect_cpu()["cpus"][0]["thread"]["id"]
    for _ in range(count):
        longest_s = 0.0
        for name, kind in kinds.items():
            begun = time.monotonic()
            values[name].append(_stood_still_ms(pid, thread, kind))
            longest_s = max(longest_s, time.monotonic() - begun)
        values["nothing"].append(_stood_still_ms(pid, thread, partial(time.sleep, longest_s)))
    return [
        Sample(
            f"inspect.pause-{name}",
            "ms",
            found,
            None if name == "nothing" else PAUSE,
            note="of a busy vCPU" if name != "nothing" else "without any inspection, for as long",
        )
        for name, found in values.items()
    ]


def _stood_still_ms(pid: int, thread: int, work: Callable[[], object]) -> float:
    before, begun = procfs.thread(pid, thread), time.monotonic()
    work()
    after, ended = procfs.thread(pid, thread), time.monotonic()
    used_s = after.ran_s - before.ran_s + after.waited_s - before.waited_s
    # The scheduler adds up at each switch, so what runs on may be counted a little late or early.
    return max(0.0, (ended - begun - used_s) * 1000)
