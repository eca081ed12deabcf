"""What each vCPU of a running VM is doing."""

from __future__ import annotations

import time
from typing import Final

from innkeeper.agent.inspect.cpus import registers_of, summary
from innkeeper.drivers import procfs
from innkeeper.engine.inspection import Inspection, Vcpu
from innkeeper.inspect.registers import CR0_BITS, CR4_BITS, EFER_BITS, Registers, names_of
from innkeeper.spec.inspection import CpuInspection, CpuReport, CpuThread

_INSTRUCTIONS: Final = 3
_TCG_NOTE: Final = (
    "no exits: under TCG the guest's code is translated and runs in QEMU itself, so there is no guest mode "
    "to leave; of a vCPU that runs, rip may be some instructions old"
)
_NO_COUNTERS: Final = "KVM keeps no counters that QEMU can read here"


async def inspect_cpu(
    name: str, vm: Inspection, pid: int, accelerator: str, *, paused: bool
) -> CpuInspection:
    """Raises Unsupported for a guest that is no x86, EngineError when QEMU does not answer."""
    begun = time.monotonic()
    registers = await registers_of(vm)
    threads = {one.index: one for one in await vm.vcpus()}
    counters = await vm.kvm_counters() if accelerator == "kvm" else {}
    cpus = [
        await _report(vm, pid, one, threads.get(one.cpu), counters.get(threads[one.cpu].path))
        for one in registers
        if one.cpu in threads
    ]
    note = _TCG_NOTE if accelerator != "kvm" else ("" if counters else _NO_COUNTERS)
    return CpuInspection(
        name=name,
        accelerator=accelerator,
        paused=paused,
        cpus=cpus,
        note=note,
        took_ms=round((time.monotonic() - begun) * 1000, 2),
    )


async def _report(
    vm: Inspection, pid: int, registers: Registers, vcpu: Vcpu | None, exits: dict[str, int] | None
) -> CpuReport:
    values = registers.values
    flags = {
        "cr0": names_of(values["CR0"], CR0_BITS),
        "cr4": names_of(values["CR4"], CR4_BITS),
        "efer": names_of(values["EFER"], EFER_BITS),
    }
    return CpuReport(
        summary=summary(registers),
        topology=dict(vcpu.topology) if vcpu else {},
        thread=_thread(pid, vcpu) if vcpu else None,
        flags=flags,
        registers={key.lower(): hex(value) for key, value in values.items()},
        executing=await vm.disassemble(registers.cpu, registers.rip, _INSTRUCTIONS),
        exits=exits,
    )


def _thread(pid: int, vcpu: Vcpu) -> CpuThread | None:
    try:
        found = procfs.thread(pid, vcpu.thread_id)
    except OSError:
        return None  # it was unplugged meanwhile
    return CpuThread(
        id=vcpu.thread_id,
        name=found.name,
        state=found.state,
        user_s=round(found.user_s, 3),
        system_s=round(found.system_s, 3),
        waited_s=round(found.waited_s, 3),
        ran_on=found.cpu,
        slices=found.slices,
    )
