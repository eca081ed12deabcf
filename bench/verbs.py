"""Start of an existing VM until QEMU runs, kill until it is gone; beside `virsh start` and `destroy`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from bench.lib.lab import Lab, run_quiet
from bench.lib.libvirt import PREFIX, URI, domain, libvirt
from bench.lib.sample import Budget, Sample, timed_ms

START = Budget(100)
KILL = Budget(40)


def run(lab: Lab) -> list[Sample]:
    daemon, name = lab.daemon, "verbs"
    vm = daemon.client.instances.create({"image": "tiny"}, name=name)
    values: dict[str, list[float]] = {}
    with ExitStack() as stack:
        stack.callback(vm.remove, force=True)
        peer = stack.enter_context(libvirt(lab))
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "cli": (lambda: daemon.inn("start", name), lambda: daemon.inn("kill", name)),
            "api": (vm.start, vm.kill),
        }
        if peer is not None:
            image = daemon.client.images.get("tiny")
            files = peer.share(daemon.state / "images" / image["id"])
            argv = vm.argv()
            append = argv[argv.index("-append") + 1]
            peer.define(domain("verbs", kernel=files["kernel"], initrd=files["initrd"], append=append))
            virsh = ["virsh", "--quiet", "--connect", URI]
            pairs["virsh"] = (
                lambda: run_quiet([*virsh, "start", PREFIX + "verbs"]),
                lambda: run_quiet([*virsh, "destroy", PREFIX + "verbs"]),
            )
        for turn in range(lab.count(30, 3) + 1):
            for kind, (start, kill) in pairs.items():
                took = (timed_ms(start), timed_ms(kill))
                if turn:  # the first warms caches
                    values.setdefault(f"start-{kind}", []).append(took[0])
                    values.setdefault(f"kill-{kind}", []).append(took[1])
        steps = _steps(vm.refresh().data["status"]["times_ms"])
    samples = [
        Sample("verbs.start-cli", "ms", values["start-cli"], START, note="whole process of inn start"),
        Sample("verbs.start-api", "ms", values["start-api"], START, note=f"the last one: {steps}"),
        Sample("verbs.kill-cli", "ms", values["kill-cli"], KILL, note="whole process of inn kill"),
        Sample("verbs.kill-api", "ms", values["kill-api"], KILL),
    ]
    for kind in ("start-virsh", "kill-virsh"):
        if kind in values:
            samples.append(Sample(f"verbs.{kind}", "ms", values[kind]))
    return samples


def _steps(times: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g} ms" for name, value in times.items())
