"""Balloons: how fast an idle guest's memory is the host's under pressure, and the guest's again.

A `tiny` of 256 MiB that has touched nearly all of its RAM and leaves it idle. The pressure is real: all VMs
together are to take less than they do (`inn host set vms_memory`), and the daemon finds that out by itself.
CPU time of the decision for 1,000 VMs beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from bench.lib.lab import Lab
from bench.lib.sample import Budget, Sample
from innkeeper.agent.tune.balloon import Account, Host, step
from innkeeper.agent.tune.memo import Memory, Vm
from innkeeper.client.instance import Instance
from innkeeper.engine.memory import GuestMemory
from innkeeper.units import GiB, MiB

TAKEN = Budget(30)
GIVEN_BACK = Budget(10)
DECIDED = Budget(50)
SIZE: Final = 256 * MiB
_TOUCH: Final = "mount -t tmpfs -o size=300m tmpfs /mnt; dd if=/dev/zero of=/mnt/a bs=1M count=150; rm /mnt/a"
_GIVE_UP_S: Final = 120.0


def run(lab: Lab) -> list[Sample]:
    taken, back, freed = [], [], []
    with ExitStack() as stack:
        spec = {"image": "tiny", "networks": [], "memory": {"size": "256MiB"}}
        vm = lab.daemon.client.instances.create(spec, name="idle", start=True, wait="ready")
        stack.callback(lambda: vm.remove(force=True))
        stack.callback(lambda: lab.daemon.client.host.set(vms_memory="none"))
        for _ in range(lab.count(5, 1)):
            vm.exec(["sh", "-c", _TOUCH])
            _until(lambda: _memory(lab, vm)["guest_available"] is not None)
            before = _memory(lab, vm)
            half = SIZE - before["guest_available"] // 2
            lab.daemon.client.host.set(vms_memory="230MiB")
            taken.append(_until(partial(_at_most, lab, vm, half)))
            _until(lambda: _memory(lab, vm)["balloon"] == _memory(lab, vm)["balloon_target"])
            freed.append((before["resident"] - _memory(lab, vm)["resident"]) / MiB)
            lab.daemon.client.host.set(vms_memory="none")
            back.append(_until(lambda: _memory(lab, vm)["balloon"] == SIZE))
    return [
        Sample(
            "balloon.taken", "s", taken, TAKEN, "half of an idle guest's free memory, from the setting on"
        ),
        Sample("balloon.freed", "MiB", freed, note="resident memory the host has again"),
        Sample("balloon.given-back", "s", back, GIVEN_BACK, "all of it, from the setting on"),
        Sample("balloon.decide-1000", "ms", _decisions(lab.count(50, 5)), DECIDED, "CPU time, 1,000 VMs"),
    ]


def _memory(lab: Lab, vm: Instance) -> dict[str, Any]:
    found = lab.daemon.client.metrics(max_age_s=0.2)["instances"]
    return next(dict(one["memory"]) for one in found if one["name"] == vm.name)


def _at_most(lab: Lab, vm: Instance, left: int) -> bool:
    return bool(_memory(lab, vm)["balloon"] <= left)


def _until(reached: Callable[[], bool]) -> float:
    """Seconds."""
    begun = time.monotonic()
    while not reached():
        if time.monotonic() - begun > _GIVE_UP_S:
            raise TimeoutError("the balloon did not move")
        time.sleep(0.1)
    return time.monotonic() - begun


def _decisions(rounds: int) -> list[float]:
    memory, took = Memory(), []
    host = Host((Account(4000 * GiB, 10 * GiB),), 0.0)
    for turn in range(rounds + 2):
        now = turn * 2.0
        vms = [
            Vm(str(number), 4 * GiB, 4 * GiB, GuestMemory(now, available=(number % 4) * GiB))
            for number in range(1000)
        ]
        begun = time.process_time()
        step(memory, host, vms, now)
        if turn >= 2:
            took.append((time.process_time() - begun) * 1000)
    return took
