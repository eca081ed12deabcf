"""From an instance to a LaunchPlan: pure, every file already found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from innkeeper.agent.context import QemuView
from innkeeper.agent.memoryplan import memory_plan
from innkeeper.engine.base import DiskPlan, FirmwarePlan, KernelPlan, LaunchPlan, Layer, NicPlan
from innkeeper.engine.qemu.argv import mac_address
from innkeeper.images.imagedir import ImageManifest, kernel_name
from innkeeper.paths import InstanceFiles
from innkeeper.spec.accelerator import choose_accelerator
from innkeeper.spec.cpu import has_hotplug
from innkeeper.spec.cpumodel import cpu_argument
from innkeeper.spec.host import HostNode
from innkeeper.spec.instance import Disk, InstanceRecord, InstanceSpec, Network, Power
from innkeeper.spec.overcommit import translated_bytes

SEED_DISK = "seed"


def pinned_machine(wanted: str, qemu: QemuView) -> str:
    """The versioned type behind `q35` or `pc`; a versioned one is itself."""
    return qemu.machine_aliases.get(wanted, wanted)


def build_launch_plan(
    record: InstanceRecord,
    *,
    image: ImageManifest | None,
    image_directory: Path,
    chains: Mapping[str, tuple[Layer, ...]],
    qemu: QemuView,
    files: InstanceFiles,
    firmware: FirmwarePlan | None,
    nic_backend: str,
    host_nodes: Sequence[HostNode] = (),
) -> LaunchPlan:
    """`chains` has the files of every disk by name, also of the seed and root disk if there are any;
    `host_nodes` are the NUMA nodes of this host."""
    spec = record.spec
    accelerator, _ = choose_accelerator(spec.machine.accelerator, qemu.kvm, qemu.kvm_detail)
    machine = pinned_machine(spec.machine.type, qemu)
    cpus_max = spec.cpu.reserved(hotplug=has_hotplug(machine))
    kernel = _kernel(record, image, image_directory, accelerator)
    positions = _boot_positions(spec, chains, direct=kernel is not None)
    return LaunchPlan(
        uid=record.uid,
        name=record.name,
        epoch=record.wanted.epoch,
        architecture=spec.machine.architecture,
        binary=qemu.binary,
        machine=machine,
        accelerator=accelerator,
        cpu_model=cpu_argument(
            spec.cpu,
            accelerator,
            image.os if image else "linux",
            architecture=spec.machine.architecture,
        ),
        cpus=spec.cpu.count,
        cpus_max=cpus_max,
        topology=spec.cpu.topology,
        memory_bytes=spec.memory.size,
        memory=memory_plan(record, host_nodes, cpus_max=cpus_max),
        disks=tuple(
            _disk(disk, chains[disk.name], positions.get(disk.name)) for disk in all_disks(spec, chains)
        ),
        nics=tuple(
            NicPlan(
                model=network.model,
                mac=network.mac or mac_address(record.uid, index),
                backend="passt" if nic_backend == "passt" else "slirp",
                forwards=forwards_of(network),
                boot_index=positions.get(f"net{index}"),
                host_access=network.host_access,
            )
            for index, network in enumerate(spec.networks)
        ),
        kernel=kernel,
        firmware=firmware,
        iommu=spec.machine.iommu,
        balloon=True,
        translated_bytes=translated_bytes(accelerator, spec.memory.size),
        reporting=spec.qos.memory.reporting,
        vga=spec.display.vga,
        vnc=spec.display.vnc,
        paused=record.wanted.power is Power.PAUSED,
        console_log=files.console_log,
        qemu_log=files.qemu_log,
    )


def forwards_of(network: Network) -> tuple[tuple[str, str, int, int], ...]:
    return tuple((f.protocol, f.address, f.host, f.guest) for f in network.forward)


def all_disks(spec: InstanceSpec, chains: Mapping[str, tuple[Layer, ...]]) -> list[Disk]:
    """The spec's disks, with the image's root disk first and the cloud-init seed last where there are any."""
    disks = list(spec.disks)
    if "root" in chains and not any(disk.name == "root" for disk in disks):
        disks.insert(0, Disk(name="root"))
    if SEED_DISK in chains:
        disks.append(Disk(name=SEED_DISK, path="seed.iso", readonly=True))
    return disks


def _disk(disk: Disk, chain: tuple[Layer, ...], boot_index: int | None) -> DiskPlan:
    return DiskPlan(
        name=disk.name,
        chain=chain,
        bus=disk.bus,
        media=disk.media,
        readonly=disk.readonly or disk.media == "cdrom",
        boot_index=boot_index,
    )


def _kernel(
    record: InstanceRecord, image: ImageManifest | None, directory: Path, accelerator: str
) -> KernelPlan | None:
    boot = record.spec.boot
    if boot.kernel:
        return KernelPlan(Path(boot.kernel), Path(boot.initrd) if boot.initrd else None, boot.append)
    kernel = kernel_name(image, bios=record.spec.machine.firmware == "bios") if image else None
    if image is None or kernel is None:
        return None
    words = [image.append, f"innkeeper.hostname={record.name}"]
    if accelerator == "tcg":
        words.append(image.append_tcg)
    words.append(boot.append)
    initrd = directory / "initrd" if "initrd" in image.files else None
    return KernelPlan(directory / kernel, initrd, " ".join(word for word in words if word))


def _boot_positions(
    spec: InstanceSpec, chains: Mapping[str, tuple[Layer, ...]], *, direct: bool
) -> dict[str, int]:
    """bootindex of each bootable device, by the order of kinds; none with a kernel given directly."""
    if direct:
        return {}
    devices: list[str] = []
    for kind in spec.boot.order:
        if kind == "network":
            devices += [f"net{index}" for index in range(len(spec.networks))]
        else:
            devices += [
                disk.name for disk in all_disks(spec, chains) if disk.media == kind and disk.name != SEED_DISK
            ]
    return {name: index for index, name in enumerate(devices)}
