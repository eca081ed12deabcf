"""`inn run` of the tiny image until its guest is ready, beside the same QEMU by hand and libvirt.

All are interleaved. "By hand" is the argument list of `inn show --argv`, with its own passt, until the
agent has answered guest-sync; libvirt's until its agent event arrives.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.lib.byhand import Hand
from bench.lib.lab import Lab, run_quiet
from bench.lib.libvirt import PREFIX, URI, Libvirt, domain, libvirt
from bench.lib.sample import Budget, Sample, interleave, timed_ms

BUDGET = Budget(1.06, "run.hand")


def run(lab: Lab) -> list[Sample]:
    with ExitStack() as stack:
        works = _ours(lab, stack)
        peer = stack.enter_context(libvirt(lab))
        if peer is not None:
            works |= _libvirts(lab, peer)
        for work in works.values():  # page cache, bytecode, libvirt's capabilities
            work()
        values = interleave(lab.count(16, 2), works)
    return [
        Sample("run.hand", "ms", values["hand"], note="QEMU by hand, spawn to guest-sync answered"),
        Sample("run.cli", "ms", values["cli"], BUDGET, note="whole process of inn run -d tiny"),
        Sample("run.api", "ms", values["api"], BUDGET, note="SDK: create, start, ready"),
        *(
            Sample(f"run.{name}", "ms", values[name], note=f"{name} until libvirt's agent event")
            for name in ("virsh-create", "virt-install")
            if name in values
        ),
    ]


def _ours(lab: Lab, stack: ExitStack) -> dict[str, Callable[[], float]]:
    daemon = lab.daemon
    template = daemon.client.instances.create({"image": "tiny"}, name="hand")
    stack.callback(template.remove, force=True)
    directory = Path(template.refresh().data["paths"]["run"])
    argv = template.argv()

    def by_hand() -> float:
        hand = Hand(argv, directory)
        try:
            return hand.boot()
        finally:
            hand.end()

    def cli() -> float:
        try:
            return timed_ms(lambda: daemon.inn("run", "tiny", "-d", "--name", "bench-cli"))
        finally:
            daemon.client.instances.handle("bench-cli").remove(force=True)

    def api() -> float:
        create = daemon.client.instances.create
        try:
            return timed_ms(lambda: create({"image": "tiny"}, name="bench-api", start=True, wait="ready"))
        finally:
            daemon.client.instances.handle("bench-api").remove(force=True)

    return {"hand": by_hand, "cli": cli, "api": api}


def _libvirts(lab: Lab, peer: Libvirt) -> dict[str, Callable[[], float]]:
    image = lab.daemon.client.images.get("tiny")
    argv = lab.daemon.client.instances.handle("hand").argv()
    append = argv[argv.index("-append") + 1]
    files = peer.share(lab.daemon.state / "images" / image["id"])
    kernel, initrd = files["kernel"], files["initrd"]
    xml = peer.directory / "run.xml"
    name = PREFIX + "run"
    xml.write_text(domain("run", kernel=kernel, initrd=initrd, append=append))

    def created() -> float:
        def work() -> None:
            peer.virsh("create", str(xml))
            peer.until_agent(name)

        try:
            return timed_ms(work)
        finally:
            peer.virsh("destroy", name)

    def installed() -> float:
        def work() -> None:
            run_quiet(_virt_install(name, kernel, initrd, append))
            peer.until_agent(name)

        try:
            return timed_ms(work)
        finally:
            peer.virsh("destroy", name)

    works = {"virsh-create": created}
    return works | {"virt-install": installed} if shutil.which("virt-install") else works


def _virt_install(name: str, kernel: Path, initrd: Path, append: str) -> list[str]:
    return [
        "virt-install", "--connect", URI, "--quiet", "--noautoconsole", "--transient", "--import",
        "--name", name, "--virt-type", "qemu", "--machine", "q35", "--memory", "256", "--vcpus", "1",
        "--cpu", "mode=maximum", "--osinfo", "detect=off,require=off", "--disk", "none",
        "--boot", f"kernel={kernel},initrd={initrd},kernel_args={append.replace(',', ',,')}",
        "--network", "user,model=virtio", "--graphics", "none", "--video", "vga",
        "--channel", "unix,target.type=virtio,target.name=org.qemu.guest_agent.0",
        "--rng", "/dev/urandom", "--memballoon", "none",
    ]  # fmt: skip
