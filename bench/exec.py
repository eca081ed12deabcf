"""Commands in a guest, and copying into and out of it."""

from __future__ import annotations

from collections.abc import Callable

from bench.lib.lab import Lab
from bench.lib.sample import Sample, interleave, timed_ms

COPY_BYTES = 8 << 20


def run(lab: Lab) -> list[Sample]:
    daemon = lab.daemon
    vm = daemon.client.instances.create({"image": "tiny"}, name="bench-exec", start=True, wait="ready")
    source, back = lab.directory / "source.bin", lab.directory / "back.bin"
    size = lab.count(COPY_BYTES, 1 << 20)
    source.write_bytes(bytes(range(256)) * (size // 256))

    def rate(work: Callable[[], object]) -> Callable[[], float]:
        return lambda: size / (1 << 20) / (timed_ms(work) / 1000)

    try:
        vm.exec(["true"])
        commands = interleave(
            lab.count(40, 3),
            {
                "cli": lambda: timed_ms(lambda: daemon.inn("exec", vm.name, "--", "true")),
                "sdk": lambda: timed_ms(lambda: vm.exec(["true"])),
            },
        )
        copies = interleave(
            lab.count(5, 1),
            {
                "in": rate(lambda: daemon.inn("cp", str(source), f"{vm.name}:/tmp/copy.bin")),
                "out": rate(lambda: daemon.inn("cp", f"{vm.name}:/tmp/copy.bin", str(back))),
            },
        )
        if back.read_bytes() != source.read_bytes():
            raise RuntimeError("what came back is not what was sent")
    finally:
        vm.remove(force=True)
    note = f"inn cp of {size >> 20} MiB, whole process"
    return [
        Sample("exec.cli", "ms", commands["cli"], note="whole process of inn exec VM -- true"),
        Sample("exec.sdk", "ms", commands["sdk"]),
        Sample("exec.cp-in", "MiB/s", copies["in"], note=note),
        Sample("exec.cp-out", "MiB/s", copies["out"], note=note),
    ]
