"""Fork of a running VM: one, many at once, in depth; the parent's pause; beside the recipe by hand."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from bench.lib.handfork import HandFork
from bench.lib.lab import Lab
from bench.lib.sample import Budget, Sample, timed_ms
from innkeeper.client.instance import Instance
from innkeeper.client.template import template_of_image
from innkeeper.errors import InnkeeperError

ANSWER = Budget(1.2, of="fork.hand")
PAUSE = Budget(100)
RATE = Budget(15, at_least=True)
PRIVATE = Budget(20)
RAM_MIB = (256, 1024, 4096)
# A parent is made ready for its next fork in the background: RAM is copied, some 0.5 s for 256 MiB.
READY_AGAIN_S = 20.0


def run(lab: Lab) -> list[Sample]:
    samples: list[Sample] = []
    with ExitStack() as stack:
        parent = _parent(lab, stack, "fork", 256)
        samples += _singles(lab, parent)
        samples += _by_hand(lab, stack, parent)
        samples += _many(lab, parent)
        samples += _depth(lab, stack, parent)
    samples += _from_template(lab, "tiny", "256MiB", (Budget(60), Budget(30)))
    if not lab.quick:
        samples += _from_template(lab, "debian", "512MiB", (Budget(110), Budget(55)))
    samples += _pauses(lab)
    return samples


def _parent(lab: Lab, stack: ExitStack, name: str, ram_mib: int) -> Instance:
    spec = {"image": "tiny", "memory": {"size": f"{ram_mib}MiB"}}
    parent = lab.daemon.client.instances.create(spec, name=name, start=True, wait="ready")
    stack.callback(_remove, lab, name)
    return parent


def _singles(lab: Lab, parent: Instance) -> list[Sample]:
    """The whole verb, and of that the copy alone: from its QEMU's start to the answer of its agent."""
    whole: list[float] = []
    answered: list[float] = []
    ready: list[float] = []
    pauses: list[float] = []
    for turn in range(lab.count(20, 2) + 1):
        begun = time.perf_counter()
        answer = parent.fork()
        took = (time.perf_counter() - begun) * 1000
        child = answer["instances"][0]
        times = child["status"]["times_ms"]
        if turn:
            whole.append(took)
            answered.append(_answered_ms(times))
            ready.append(times["ready"])
            pauses.append(answer["pause_ms"])
        _remove(lab, child["name"])
        _wait_own_ram(parent)
    cold = [_cold_ms(lab) for _ in range(lab.count(5, 1))]
    return [
        Sample("fork.one", "ms", whole, note="API: from the request to the copy ready, with its identity"),
        Sample(
            "fork.answer", "ms", answered, ANSWER, note="of that: spawn of the copy to its agent's answer"
        ),
        Sample("fork.ready", "ms", ready, note="from the start of its QEMU to ready, waiting included"),
        Sample("fork.pause", "ms", pauses, PAUSE, note="256 MiB"),
        Sample("fork.cold", "ms", cold, note="a cold boot of the same VM to ready"),
    ]


def _answered_ms(times: dict[str, float]) -> float:
    """A copy's own steps, from the start of its QEMU to its agent's answer, as the recipe by hand has them;
    not what it waited for the moment, which is the parent's pause and what comes before it."""
    return sum(times[step] for step in ("spawn", "monitor", "restore", "answer"))


def _cold_ms(lab: Lab) -> float:
    def boot() -> None:
        lab.daemon.client.instances.create({"image": "tiny"}, name="cold", start=True, wait="ready")

    took = timed_ms(boot)
    _remove(lab, "cold")
    return took


def _by_hand(lab: Lab, stack: ExitStack, parent: Instance) -> list[Sample]:
    argv = parent.argv()
    hand = HandFork(argv, lab.daemon.state.parent / "handfork")
    stack.callback(hand.end)
    frozen = hand.freeze()
    values = [hand.copy() for _ in range(lab.count(20, 2) + 1)][1:]
    return [
        Sample("fork.hand", "ms", values, note="the recipe by hand: spawn of a copy to its agent's answer"),
        Sample("fork.hand-freeze", "ms", [frozen]),
    ]


def _many(lab: Lab, parent: Instance) -> list[Sample]:
    samples = []
    for count in (50, 100) if not lab.quick else (5,):
        _wait_own_ram(parent)
        begun = time.perf_counter()
        children = parent.fork(count=count)["instances"]
        took = time.perf_counter() - begun
        answered = [_answered_ms(child["status"]["times_ms"]) for child in children]
        rate = count / took / (os.cpu_count() or 1)
        time.sleep(2.0 if not lab.quick else 0.2)
        private = [_private_mb(child["pid"]) for child in children]
        samples += [
            Sample(f"fork.rate-{count}", "/core/s", [rate], RATE, note="all ready, with their identities"),
            Sample(f"fork.answer-{count}", "ms", answered, note="of each: spawn to its agent's answer"),
            Sample(f"fork.private-{count}", "MB", private, PRIVATE, note="private memory of an idle copy"),
        ]
        for child in children:
            _remove(lab, child["name"])
    return samples


def _from_template(lab: Lab, image: str, memory: str, answers: tuple[Budget, Budget]) -> list[Sample]:
    """Copies of a template, with their QEMU spawned for them and spawned ahead; and the command as typed."""
    client = lab.daemon.client
    lab.need_image(image)
    name = f"{image}-template"
    warm = template_of_image(client, {"image": image, "memory": {"size": memory}}, name=name)
    samples = []
    try:
        for pool, how in ((0, "template"), (1, "pool")):
            warm.template(pool=pool)
            answered: list[float] = []
            ready: list[float] = []
            typed: list[float] = []
            for turn in range(lab.count(20, 2) + 1):
                _wait_for_spare(warm, pool)
                child = warm.fork()["instances"][0]
                times = child["status"]["times_ms"]
                steps = ("restore", "answer") if pool else ("spawn", "monitor", "restore", "answer")
                _remove(lab, child["name"])
                _wait_for_spare(warm, pool)
                took = timed_ms(
                    lambda: lab.daemon.inn("run", "-d", image, "--memory", memory, "--name", "typed")
                )
                _remove(lab, "typed")
                if turn:
                    answered.append(sum(times[step] for step in steps))
                    ready.append(times["ready"])
                    typed.append(took)
            samples += [
                Sample(
                    f"fork.{image}-{how}", "ms", answered, answers[pool], note="to the answer of its agent"
                ),
                Sample(f"fork.{image}-{how}-ready", "ms", ready, note="with its identity"),
                Sample(f"fork.{image}-{how}-inn", "ms", typed, note="inn run, the whole process, to ready"),
            ]
    finally:
        _remove(lab, name)
    return samples


def _wait_for_spare(template: Instance, pool: int) -> None:
    deadline = time.monotonic() + READY_AGAIN_S
    while template.refresh().data["status"]["spares"] != pool and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # until the one before is gone for good


def _depth(lab: Lab, stack: ExitStack, parent: Instance) -> list[Sample]:
    values: list[float] = []
    last = parent
    for _ in range(lab.count(10, 2)):
        begun = time.perf_counter()
        child = last.fork()["instances"][0]
        values.append((time.perf_counter() - begun) * 1000)
        stack.callback(_remove, lab, child["name"])
        last = lab.daemon.client.instances.get(child["name"])
    return [
        Sample("fork.depth", "ms", values, note="a fork of a fork, one level each; its RAM is moved first")
    ]


def _pauses(lab: Lab) -> list[Sample]:
    samples = []
    for ram_mib in RAM_MIB if not lab.quick else RAM_MIB[:1]:
        with ExitStack() as stack:
            parent = _parent(lab, stack, f"pause-{ram_mib}", ram_mib)
            parent.exec(["sh", "-c", f"mount -t tmpfs -o size={ram_mib // 2}m none /mnt; "
                         f"dd if=/dev/zero of=/mnt/fill bs=1M count={ram_mib // 2 - 32}"])  # fmt: skip
            answer: dict[str, Any] = parent.fork()
            samples.append(Sample(f"fork.pause-{ram_mib}", "ms", [answer["pause_ms"]], PAUSE,
                                  note="half of the RAM written"))  # fmt: skip
            for child in answer["instances"]:
                _remove(lab, child["name"])
    return samples


def _wait_own_ram(parent: Instance) -> None:
    """Until the parent has been made ready for its next fork, seen by its new pid."""
    before, deadline = parent.refresh().data["pid"], time.monotonic() + READY_AGAIN_S
    quiet = time.monotonic() + 3.0
    while parent.refresh().data["pid"] == before and time.monotonic() < min(deadline, quiet):
        time.sleep(0.02)


def _private_mb(pid: int) -> float:
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        kib = sum(
            int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))
        )
        return kib / 1000
    return 0.0


def _remove(lab: Lab, name: str) -> None:
    with suppress(InnkeeperError):
        lab.daemon.client.instances.handle(name).remove(force=True)
