"""The registers of a running VM, in one answer, as the inspections show them."""

from __future__ import annotations

from innkeeper.engine.inspection import Inspection
from innkeeper.errors import NotFound, Unsupported
from innkeeper.inspect.registers import Registers
from innkeeper.spec.inspection import CpuSummary


async def registers_of(vm: Inspection) -> list[Registers]:
    """Raises Unsupported for a guest that is no x86."""
    found = await vm.registers()
    if not found:
        raise Unsupported(
            "This guest's CPU is no x86: its page tables and registers are of another form",
            hint="inn inspect disk and inn inspect net work for it",
        )
    return found


def one_of(all_registers: list[Registers], cpu: int) -> Registers:
    for one in all_registers:
        if one.cpu == cpu:
            return one
    last = max(one.cpu for one in all_registers)
    raise NotFound(f"There is no vCPU {cpu}", hint=f"there are 0 to {last}" if last else "there is only 0")


def summary(registers: Registers) -> CpuSummary:
    values = registers.values
    return CpuSummary(
        cpu=registers.cpu,
        mode=registers.mode,
        ring=registers.ring,
        halted=registers.halted,
        smm=registers.in_smm,
        paging=registers.paging().mode.value,
        rip=hex(registers.rip),
        rsp=hex(registers.linear("RSP")),
        cr0=hex(values["CR0"]),
        cr2=hex(values["CR2"]),
        cr3=hex(values["CR3"]),
        cr4=hex(values["CR4"]),
        efer=hex(values["EFER"]),
    )
