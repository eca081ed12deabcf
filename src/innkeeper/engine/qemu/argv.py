"""The QEMU command line, a pure function of a LaunchPlan (golden files: tests/golden/argv).

Everything that can be JSON is JSON, so that no file name or text of a user needs escaping
(docs/system/invocation: -blockdev, -device, -netdev, -object take JSON since 6.0-7.1). `Wiring`
decides how files and sockets are named: by descriptor when we start QEMU, by path when a person
reads the line (`inn show --argv`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final, Protocol

from innkeeper.engine.base import DiskPlan, LaunchPlan, NicPlan
from innkeeper.engine.memory import RamPlan
from innkeeper.engine.qemu.memory_argv import dimm_devices, machine_option, memory_options, numa_members
from innkeeper.paths import RuntimeFiles
from innkeeper.units import MiB

AGENT_PORT: Final = "org.qemu.guest_agent.0"
# QEMU drops these system calls; `obsolete` etc. as in its own recommendation (qemu -sandbox help).
SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
BALLOON: Final = "balloon0"

# Requests of virtio disks are served by a thread of their own, beside QEMU's main loop and the vCPUs:
# reads in a TCG guest 534 -> 632 MiB/s, writes 236 -> 253 (bench/guestio).
DISK_THREAD: Final = "disks"

_NIC_DRIVERS: Final = {
    "virtio": "virtio-net-pci",
    "e1000": "e1000",
    "e1000e": "e1000e",
    "rtl8139": "rtl8139",
}
_VGA_DRIVERS: Final = {"std": "VGA", "virtio": "virtio-vga"}
_TOPOLOGY: Final = ("sockets", "cores", "threads")
# IDE and AHCI controllers of these machines have so many units a bus (QEMU hw/ide).
_PC_IDE_UNITS: Final = 2


class Wiring(Protocol):
    def image(self, path: Path, *, writable: bool) -> str:
        """File name for -blockdev."""

    def readable(self, path: Path) -> str:
        """File name QEMU opens with plain fopen: kernel and initrd."""

    def log(self, path: Path) -> str: ...

    def ram(self, piece: RamPlan, *, private: bool) -> dict[str, Any]:
        """Members of the memory backend object, without id and size."""

    def listener(self, path: Path) -> str:
        """The address part of `-chardev socket` for a server socket at `path`."""

    def socket(self, path: Path) -> str:
        """File name of a socket that QEMU itself makes."""

    def network(self, index: int, path: Path) -> dict[str, Any]:
        """The address of passt for `-netdev stream`."""


class ByPath:
    """Names for people: plain paths; a comma in a non-JSON option is doubled (QEMU's own quoting)."""

    def image(self, path: Path, *, writable: bool) -> str:
        return str(path)

    def readable(self, path: Path) -> str:
        return str(path)

    def log(self, path: Path) -> str:
        return str(path).replace(",", ",,")

    def __init__(self, page_bytes: int = 0) -> None:
        self._page_bytes = page_bytes

    def ram(self, piece: RamPlan, *, private: bool) -> dict[str, Any]:
        huge = {"hugetlb": True, "hugetlbsize": self._page_bytes} if self._page_bytes else {}
        return {"qom_type": "memory-backend-memfd", "share": True, **huge, **numa_members(piece)}

    def listener(self, path: Path) -> str:
        return "path=" + str(path).replace(",", ",,")

    def socket(self, path: Path) -> str:
        return str(path)

    def network(self, index: int, path: Path) -> dict[str, Any]:
        return {"type": "unix", "path": str(path)}


def mac_address(uid: str, index: int) -> str:
    """A stable MAC for NIC `index` of the instance: locally administered, in QEMU's 52:54:00 range."""
    digest = hashlib.sha256(f"{uid}/{index}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def build_argv(plan: LaunchPlan, files: RuntimeFiles, wiring: Wiring) -> list[str]:
    """The complete argument list, program included."""
    argv = [
        plan.binary,
        *("-name", f"guest={plan.name},debug-threads=on"),
        *("-uuid", plan.uid),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-sandbox", SANDBOX),
        *_machine(plan, wiring),
        *_channels(plan, files, wiring),
    ]
    if plan.kernel:
        argv += ["-kernel", wiring.readable(plan.kernel.kernel)]
        if plan.kernel.initrd:
            argv += ["-initrd", wiring.readable(plan.kernel.initrd)]
        if plan.kernel.append:
            argv += ["-append", plan.kernel.append]
    if any(_on_virtio(disk) for disk in plan.disks):
        argv += ["-object", _json(qom_type="iothread", id=DISK_THREAD)]
    if any(disk.bus == "scsi" for disk in plan.disks):
        argv += ["-device", json.dumps({"driver": "virtio-scsi-pci", "id": "scsi0"} | _queues(plan, "_"))]
    if _needs_ahci(plan):
        argv += _device(driver="ich9-ahci", id="ahci0")
    positions = _positions(plan)
    for disk in plan.disks:
        argv += _disk(plan, disk, positions[disk.name], wiring)
    for index, nic in enumerate(plan.nics):
        argv += _nic(nic, index, files, wiring)
    argv += _display(plan, files, wiring)
    if plan.balloon:
        # The last one, so that no other device is in another slot than before there was a balloon. A guest
        # that runs out of memory takes back what it needs rather than kill a program.
        reporting = True if plan.reporting else None
        argv += _device(
            driver="virtio-balloon-pci", id=BALLOON, deflate_on_oom=True, free_page_reporting=reporting
        )
    if plan.incoming:
        # -S: it must not run by itself once it has the state, since the other process may still go on.
        argv += ["-incoming", "defer", "-S"]
    elif plan.paused:
        argv += ["-S"]
    return argv


def _json(**members: Any) -> str:
    return json.dumps({key.replace("_", "-"): value for key, value in members.items() if value is not None})


def _device(**members: Any) -> list[str]:
    return ["-device", _json(**members)]


def _machine(plan: LaunchPlan, wiring: Wiring) -> list[str]:
    options = [plan.machine, *machine_option(plan), "usb=off"]
    if plan.architecture == "aarch64":
        options.append("gic-version=3")  # version 2 knows 8 CPUs
    argv: list[str] = []
    if plan.firmware:
        argv += _blockdev(driver="file", node_name="fw-code-file", filename=wiring.image(
            plan.firmware.code, writable=False), read_only=True)  # fmt: skip
        argv += _blockdev(driver="raw", node_name="fw-code", file="fw-code-file", read_only=True)
        argv += _blockdev(driver="file", node_name="fw-vars-file", filename=wiring.image(
            plan.firmware.variables, writable=True))  # fmt: skip
        argv += _blockdev(driver="raw", node_name="fw-vars", file="fw-vars-file")
        options += ["pflash0=fw-code", "pflash1=fw-vars"]
    accel: str = plan.accelerator
    if accel == "tcg" and plan.translated_bytes:
        accel += f",tb-size={plan.translated_bytes // MiB}"
    return [
        *argv,
        *("-machine", ",".join(options)),
        *("-accel", accel),
        *("-cpu", plan.cpu_model),
        *("-smp", _smp(plan)),
        *memory_options(plan, wiring),
        # A guest that sleeps through a pause or a fork must not replay every missed tick.
        *("-rtc", "base=utc,driftfix=slew" if plan.accelerator == "kvm" else "base=utc"),
        *("-boot", "strict=on"),
        *dimm_devices(plan),
        # Before all other devices: it must be there when they join the bus.
        *(_device(driver="intel-iommu") if plan.iommu == "intel" else []),
    ]


def _smp(plan: LaunchPlan) -> str:
    """Those there are, and the places for more. A vCPU that was plugged in is an ordinary one here: it is the
    same device with the same state in a process that is started with it."""
    words = [f"cpus={plan.cpus}"]
    if plan.topology:
        words += [f"{name}={count}" for name, count in zip(_TOPOLOGY, plan.topology, strict=True)]
    if plan.cpus_max > plan.cpus or plan.topology:
        words.append(f"maxcpus={plan.cpus_max}")
    return ",".join(words)


def _channels(plan: LaunchPlan, files: RuntimeFiles, wiring: Wiring) -> list[str]:
    """Monitor, serial console (kept in a log by QEMU itself, so that nothing is missed while no
    daemon runs), agent port, random numbers, and the panic notifier."""
    log = wiring.log(plan.console_log)
    return [
        *("-chardev", f"socket,id=qmp,{wiring.listener(files.qmp)},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,{wiring.listener(files.console)},server=on,wait=off,"
                      f"logfile={log},logappend=on"),
        *("-serial", "chardev:console"),
        *("-chardev", f"socket,id=agent,{wiring.listener(files.agent)},server=on,wait=off"),
        *_device(driver="virtio-serial-pci", id="channels"),
        *_device(driver="virtserialport", bus="channels.0", chardev="agent", name=AGENT_PORT, id="agent0"),
        *("-object", _json(qom_type="rng-random", id="rng0", filename="/dev/urandom")),
        *_device(driver="virtio-rng-pci", rng="rng0"),
        # Where ACPI tells of it, that is; machines of other architectures have none here.
        *(_device(driver="vmgenid", guid=plan.uid, id="generation") if _is_pc(plan) else []),
        *_device(driver="pvpanic-pci"),
    ]  # fmt: skip


def _needs_ahci(plan: LaunchPlan) -> bool:
    """q35 has an AHCI controller of its own (ide.0 to ide.5); pc needs one for SATA."""
    return not _is_q35(plan) and any(disk.bus == "sata" for disk in plan.disks)


def _is_pc(plan: LaunchPlan) -> bool:
    return plan.architecture == "x86_64"


def _is_q35(plan: LaunchPlan) -> bool:
    return "q35" in plan.machine


def _positions(plan: LaunchPlan) -> dict[str, int]:
    """Each disk's number on its own bus; IDE and SATA share q35's one controller."""
    counters: dict[str, int] = {}
    positions = {}
    for disk in plan.disks:
        bus = "sata" if disk.bus == "ide" and _is_q35(plan) else disk.bus
        positions[disk.name] = counters.get(bus, 0)
        counters[bus] = positions[disk.name] + 1
    return positions


def _blockdev(**members: Any) -> list[str]:
    return ["-blockdev", _json(**members)]


def _disk(plan: LaunchPlan, disk: DiskPlan, position: int, wiring: Wiring) -> list[str]:
    argv: list[str] = []
    below: str | None = None
    for depth in reversed(range(len(disk.chain))):
        layer = disk.chain[depth]
        writable = depth == 0 and not disk.readonly
        node = f"disk-{disk.name}" if depth == 0 else f"disk-{disk.name}-{depth}"
        argv += _blockdev(
            driver="file",
            node_name=f"{node}-file",
            filename=wiring.image(layer.path, writable=writable),
            read_only=None if writable else True,
            discard="unmap" if writable else None,
        )
        format_members: dict[str, Any] = {"discard": "unmap"} if writable else {"read_only": True}
        if layer.format == "qcow2":
            # An explicit null keeps QEMU from opening whatever backing file the header names.
            argv += ["-blockdev", json.dumps({
                "driver": "qcow2", "node-name": node, "file": f"{node}-file", "backing": below,
                **{key.replace("_", "-"): value for key, value in format_members.items()},
            })]  # fmt: skip
        else:
            argv += _blockdev(driver="raw", node_name=node, file=f"{node}-file", **format_members)
        below = node
    return [*argv, *_disk_device(plan, disk, position)]


def _queues(plan: LaunchPlan, joint: str) -> dict[str, int]:
    """QEMU gives a disk as many queues as there are vCPUs at its start: in a process that goes on for one
    which has got vCPUs since, that is as many as that one was built with."""
    built = plan.cpus_built or plan.cpus
    return {f"num{joint}queues": built} if built != plan.cpus else {}


def _on_virtio(disk: DiskPlan) -> bool:
    return disk.bus == "virtio" and disk.media == "disk"


def _disk_device(plan: LaunchPlan, disk: DiskPlan, position: int) -> list[str]:
    node, kind = f"disk-{disk.name}", "cd" if disk.media == "cdrom" else "hd"
    # Serial numbers are 20 bytes (virtio spec 5.2.6.2, ATA IDENTIFY words 10-19).
    common: dict[str, Any] = {"drive": node, "bootindex": disk.boot_index, "serial": disk.name[:20]}
    device_id = f"disk-{disk.name}-dev"
    if _on_virtio(disk):
        common |= _queues(plan, "-")
        return _device(driver="virtio-blk-pci", id=device_id, iothread=DISK_THREAD, **common)
    if disk.bus == "scsi":
        return _device(driver=f"scsi-{kind}", id=device_id, bus="scsi0.0", **common)
    if disk.bus == "ide" and not _is_q35(plan):
        bus, unit = divmod(position, _PC_IDE_UNITS)
        return _device(driver=f"ide-{kind}", id=device_id, bus=f"ide.{bus}", unit=unit, **common)
    # A virtio bus has no CD-ROM drive; a cdrom on it goes to SATA, as everywhere else.
    bus_name = f"ide.{position}" if _is_q35(plan) else f"ahci0.{position}"
    return _device(driver=f"ide-{kind}", id=device_id, bus=bus_name, **common)


def _nic(nic: NicPlan, index: int, files: RuntimeFiles, wiring: Wiring) -> list[str]:
    name = f"net{index}"
    if nic.backend == "passt":
        socket = files.directory / f"{name}.sock"
        backend = _json(type="stream", id=name, server=False, addr=wiring.network(index, socket))
    else:
        forwards = [
            {"str": f"{protocol}:{address}:{host}-:{guest}"}
            for protocol, address, host, guest in nic.forwards
        ]
        backend = _json(type="user", id=name, hostfwd=forwards or None)
    driver = _NIC_DRIVERS[nic.model]
    # Without an option ROM a NIC cannot boot from the network, and the firmware starts faster.
    rom = "" if nic.boot_index is None else None
    return [
        *("-netdev", backend),
        *_device(driver=driver, id=f"{name}-dev", netdev=name, mac=nic.built_mac or nic.mac, romfile=rom,
                 bootindex=nic.boot_index),
    ]  # fmt: skip


def _display(plan: LaunchPlan, files: RuntimeFiles, wiring: Wiring) -> list[str]:
    driver = _VGA_DRIVERS.get(plan.vga, "")
    if plan.vga == "virtio" and not _is_pc(plan):
        driver = "virtio-gpu-pci"  # a VGA-compatible one is a PC's
    argv = _device(driver=driver, id="video0") if driver else []
    if plan.vnc == "socket":
        argv += ["-vnc", f"unix:{wiring.socket(files.vnc)}"]
    elif plan.vnc:
        address, _, port = plan.vnc.rpartition(":")
        # QEMU counts VNC displays from port 5900; `to` is not given, so a taken port is an error.
        argv += ["-vnc", f"{address}:{int(port) - 5900}"]
    return argv
