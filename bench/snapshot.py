"""Snapshots with memory: create, restore; save and restore of the whole VM, beside `virsh save`/`restore`.

256 MiB of RAM, of which a booted `tiny` has touched some 90. All are synced before they answer; libvirt's
file is, too (its I/O helper calls fdatasync).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from bench.lib.lab import Lab
from bench.lib.libvirt import PREFIX, Libvirt, domain, libvirt
from bench.lib.sample import Budget, Sample, interleave, timed_ms
from innkeeper.client.instance import Instance

PAUSE = Budget(100)
SAVE = Budget(0.5, of="snapshot.save-virsh")
RESTORE = Budget(0.5, of="snapshot.restore-virsh")
# A VM is made ready for its next moment in the background, some 0.5 s for 256 MiB.
READY_AGAIN_S = 1.5


def run(lab: Lab) -> list[Sample]:
    with ExitStack() as stack:
        vm = lab.daemon.client.instances.create({"image": "tiny"}, name="snap", start=True, wait="ready")
        stack.callback(lambda: vm.remove(force=True, snapshots=True))
        samples = _snapshots(lab, vm)
        peer = stack.enter_context(libvirt(lab))
        return samples + _saves(lab, vm, peer)


def _snapshots(lab: Lab, vm: Instance) -> list[Sample]:
    values: dict[str, list[float]] = {}
    for turn in range(lab.count(10, 2) + 1):
        for kind, compress in (("", False), ("-zstd", True)):
            time.sleep(READY_AGAIN_S)
            begun = time.perf_counter()
            taken = vm.snapshots.create("s", compress=compress)
            took = (time.perf_counter() - begun) * 1000
            back = timed_ms(lambda: vm.snapshots.restore("s", wait="running"))
            vm.wait("ready")
            vm.snapshots.remove("s")
            if turn:
                values.setdefault(f"create{kind}", []).append(took)
                values.setdefault(f"back{kind}", []).append(back)
                values.setdefault(f"size{kind}", []).append(taken["size_bytes"] / (1 << 20))
                values.setdefault("pause", []).append(taken["pause_ms"])
    return [
        Sample("snapshot.pause", "ms", values["pause"], PAUSE, note="how long the VM stands still"),
        Sample("snapshot.create", "ms", values["create"], note="API, until synced; the VM runs meanwhile"),
        Sample("snapshot.create-zstd", "ms", values["create-zstd"]),
        Sample("snapshot.back", "ms", values["back"], note="API: in place, the old run ended, until running"),
        Sample("snapshot.back-zstd", "ms", values["back-zstd"]),
        Sample("snapshot.size", "MiB", values["size"]),
        Sample("snapshot.size-zstd", "MiB", values["size-zstd"]),
    ]


def _saves(lab: Lab, vm: Instance, peer: Libvirt | None) -> list[Sample]:
    """Whole processes of `inn` and `virsh`, in turn."""
    rounds = {"inn": _inn(lab, vm)}
    if peer is not None:
        rounds["virsh"] = _virsh(lab, vm, peer)
    took: dict[str, list[float]] = {}

    def one(name: str, pair: tuple[Callable[[], object], Callable[[], object]]) -> float:
        time.sleep(READY_AGAIN_S)
        save, restore = timed_ms(pair[0]), timed_ms(pair[1])
        took.setdefault(f"save-{name}", []).append(save)
        took.setdefault(f"restore-{name}", []).append(restore)
        return save + restore

    works = {name: (lambda name=name, pair=pair: one(name, pair)) for name, pair in rounds.items()}
    interleave(lab.count(10, 2), works)
    samples = [
        Sample("snapshot.save-inn", "ms", took["save-inn"], SAVE, note="whole process of inn save"),
        Sample("snapshot.restore-inn", "ms", took["restore-inn"], RESTORE, note="inn restore, until it runs"),
    ]
    for name in ("save-virsh", "restore-virsh"):
        if name in took:
            samples.append(Sample(f"snapshot.{name}", "ms", took[name]))
    return samples


def _inn(lab: Lab, vm: Instance) -> tuple[Callable[[], object], Callable[[], object]]:
    return (
        lambda: lab.daemon.inn("save", vm.name),
        lambda: lab.daemon.inn("restore", "--no-wait", vm.name),
    )


def _virsh(lab: Lab, vm: Instance, peer: Libvirt) -> tuple[Callable[[], object], Callable[[], object]]:
    image = lab.daemon.client.images.get("tiny")
    files = peer.share(lab.daemon.state / "images" / image["id"])
    argv = vm.argv()
    append = argv[argv.index("-append") + 1]
    peer.define(domain("snap", kernel=files["kernel"], initrd=files["initrd"], append=append))
    peer.virsh("start", PREFIX + "snap")
    peer.until_agent(PREFIX + "snap")
    saved = str(peer.directory / "saved")
    return lambda: peer.virsh("save", PREFIX + "snap", saved), lambda: peer.virsh("restore", saved)
