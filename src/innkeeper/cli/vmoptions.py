"""The options that `inn run` and `inn create` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from innkeeper.cli.command import complete_images

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def vm_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """IMAGE and everything that describes the VM; read by specargs.build."""
    for decorator in reversed(_OPTIONS):
        function = decorator(function)
    return function


_OPTIONS: list[Decorator] = [
    click.argument("image", metavar="[IMAGE|PATH]", required=False, shell_complete=complete_images),
    click.option("--name", metavar="NAME", help="Name of the VM (default: a readable one is made up)."),
    click.option("--cpus", type=click.IntRange(1, 255), metavar="N", help="Number of vCPUs (default: 1)."),
    click.option(
        "--max-cpus", type=click.IntRange(1, 255), metavar="N", help="How many it may get live (default: 8)."
    ),
    click.option("--sockets", type=click.IntRange(1, 255), metavar="N", help="Processor sockets."),
    click.option("--cores", type=click.IntRange(1, 255), metavar="N", help="Cores of each socket."),
    click.option("--threads", type=click.IntRange(1, 255), metavar="N", help="Threads of each core."),
    click.option("--cpu-model", metavar="MODEL", help="CPU model, as QEMU names it (default: the best)."),
    click.option(
        "--cpu-feature",
        "cpu_features",
        multiple=True,
        metavar="+FLAG|-FLAG",
        help="Add a CPU flag, or leave one out, as often as wanted: --cpu-feature=-avx.",
    ),
    click.option(
        "--cpu-pin",
        multiple=True,
        metavar="VCPU=CPUS",
        help="Run a vCPU on these CPUs of the host, such as 0=2-3; as often as wanted.",
    ),
    click.option("--emulator-cpus", metavar="CPUS", help="CPUs of the host for QEMU's other threads."),
    click.option("--io-cpus", metavar="CPUS", help="CPUs of the host for its disks' threads."),
    click.option(
        "--cpu-shares", metavar="low|normal|high|N", help="Its part of a busy host (default: normal, 1000)."
    ),
    click.option("--cpu-reservation", metavar="CORES", help="CPUs it has whatever others do: 1.5, 500m."),
    click.option("--cpu-limit", metavar="CORES", help="CPUs it takes at most (default: any)."),
    click.option(
        "--paravirt",
        type=click.Choice(["auto", "kvm", "hyperv", "none"]),
        help="Help for guests under KVM: auto (the default) goes by the image.",
    ),
    click.option("--memory", metavar="SIZE", help="RAM, such as 512MiB or 2GiB (default: 256MiB)."),
    click.option("--hugepages", type=click.Choice(["2MiB", "1GiB"]), help="RAM from the host's huge pages."),
    click.option("--numa", type=click.Choice(["none", "auto"]), help="NUMA nodes the guest sees."),
    click.option(
        "--accel",
        type=click.Choice(["auto", "kvm", "tcg"]),
        help="Accelerator; auto (the default) is kvm where it works at hardware speed, else tcg.",
    ),
    click.option("--machine", metavar="TYPE", help="Machine type: q35 (the default), pc or a versioned one."),
    click.option(
        "--arch",
        type=click.Choice(["x86_64", "aarch64", "riscv64"]),
        help="Architecture of the guest (default: as the image); others than the host's are emulated.",
    ),
    click.option("--firmware", type=click.Choice(["bios", "uefi"]), help="Firmware (default: bios)."),
    click.option(
        "--disk",
        multiple=True,
        metavar="SIZE|PATH[,bus=BUS][,name=NAME][,ro]",
        help="A disk, as often as wanted: a new one of this size, or an image file used in place."
        " BUS is virtio (the default), scsi, sata or ide.",
    ),
    click.option(
        "--root-size", metavar="SIZE", help="Grow the first disk to this size (default: as the image)."
    ),
    click.option("--cdrom", multiple=True, metavar="PATH", help="An ISO in a CD-ROM drive."),
    click.option("--boot", metavar="ORDER", help="Boot order, such as cdrom,disk (default: disk,cdrom)."),
    click.option("--kernel", metavar="PATH", help="Boot this kernel directly."),
    click.option("--initrd", metavar="PATH", help="Initial RAM disk for the kernel."),
    click.option("--append", metavar="TEXT", help="Kernel command line, added to the image's own."),
    click.option(
        "--network",
        multiple=True,
        metavar="user|MODEL|none[,model=MODEL][,mac=MAC][,host_access=on]",
        help="A network card: user (the default) reaches out through the host without any set-up."
        " MODEL is virtio, e1000, e1000e or rtl8139. With host_access=on the guest reaches what listens on"
        " the host's loopback, at its gateway's address.",
    ),
    click.option(
        "--forward",
        multiple=True,
        metavar="[ADDR:]HOST:GUEST[/udp]",
        help="Lead a port of this host (on 127.0.0.1, unless ADDR says otherwise) to one of the guest.",
    ),
    click.option("--vga", type=click.Choice(["none", "std", "virtio"]), help="Graphics adapter."),
    click.option("--vnc", metavar="socket|ADDR:PORT", help="Serve the screen by VNC (default: not)."),
    click.option("--user-data", metavar="FILE", help="cloud-init user data (-: standard input)."),
    click.option("--label", multiple=True, metavar="KEY=VALUE", help="A free-form note."),
    click.option(
        "--restart-policy",
        type=click.Choice(["never", "on-failure", "always"]),
        help="Start it again when it ends by itself (default: never).",
    ),
    click.option(
        "--agent/--no-agent",
        default=None,
        help="Whether ready means that the guest agent answers (default: as the image says).",
    ),
]
