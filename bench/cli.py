"""What a user waits for before anything happens: start-up of `inn`, lists, and reads over the API."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack

from bench.lib.lab import HALTED, INN, Daemon, Lab, environment, run_quiet
from bench.lib.libvirt import URI, Libvirt, domain, libvirt
from bench.lib.sample import Budget, Sample, interleave, timed_ms

MANY = 500
READS = 300


def run(lab: Lab) -> list[Sample]:
    many = lab.count(MANY, 50)
    with ExitStack() as stack:
        daemon = stack.enter_context(lab.own_daemon("many"))
        none = stack.enter_context(lab.own_daemon("none"))
        peer = stack.enter_context(libvirt(lab))
        fill(daemon, many)
        processes = _processes(daemon, none, peer, many)
        for work in processes.values():
            work()
        values = interleave(lab.count(30, 3), processes)
        values |= _reads(daemon, lab.count(READS, 10), many)
    return _samples(values, many)


def fill(daemon: Daemon, count: int) -> None:
    for index in range(count):
        daemon.client.instances.create(HALTED, name=f"vm-{index:03}", wait="none")


def _processes(
    daemon: Daemon, none: Daemon, peer: Libvirt | None, many: int
) -> dict[str, Callable[[], float]]:
    def process(*argv: str, env: dict[str, str] | None = None) -> Callable[[], float]:
        return lambda: timed_ms(lambda: run_quiet(argv, env))

    works = {
        "python": process(sys.executable, "-c", "pass"),
        "version": process(INN, "--version"),
        "list-0": process(INN, "list", env=none.env()),
        "list": process(INN, "list", env=daemon.env()),
    }
    if peer is not None:
        peer.define_many([domain(f"{index:03}", memory_mib=32, network=False) for index in range(many)])
        works["virsh"] = process("virsh", "--connect", URI, "list", "--all", env=environment())
    return works


def _reads(daemon: Daemon, count: int, many: int) -> dict[str, list[float]]:
    instances = daemon.client.instances
    instances.list_data()
    one = instances.get(f"vm-{many // 2:03}")

    def after_change() -> float:
        """The list right after something changed: what is prepared must be made again."""
        one.update({"labels": {"turn": "x"}})
        one.update({"labels": {}})
        return timed_ms(instances.list_data)

    return {
        "api-list": [timed_ms(instances.list_data) for _ in range(count)],
        "api-list-changed": [after_change() for _ in range(max(3, count // 10))],
        "api-one": [timed_ms(one.refresh) for _ in range(count)],
    }


def _samples(values: dict[str, list[float]], many: int) -> list[Sample]:
    beside = Budget(1.0, "cli.virsh-list") if "virsh" in values else Budget(65)
    samples = [
        Sample("cli.python", "ms", values["python"], note="python -c pass: the floor of every command"),
        Sample("cli.version", "ms", values["version"], note="whole process of inn --version"),
        Sample("cli.list-0", "ms", values["list-0"], note="whole process of inn list, no instances"),
        Sample("cli.list", "ms", values["list"], beside, note=f"whole process of inn list, {many} instances"),
    ]
    if "virsh" in values:
        note = f"whole process of virsh list --all, {many} domains"
        samples.append(Sample("cli.virsh-list", "ms", values["virsh"], note=note))
    return [
        *samples,
        Sample("cli.api-list", "ms", values["api-list"], Budget(10), note=f"SDK, list of {many}"),
        Sample("cli.api-list-changed", "ms", values["api-list-changed"], Budget(10), note="after a change"),
        Sample("cli.api-one", "ms", values["api-one"], Budget(2), note="SDK, all about one instance"),
    ]
