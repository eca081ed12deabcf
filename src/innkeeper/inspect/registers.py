"""The registers of an x86 vCPU: read from QEMU's text, decoded, and used in addresses.

`info registers` is the one place where QEMU shows them; its form is x86_cpu_dump_state() in
target/i386/cpu-dump.c. Bit names: Intel SDM vol. 3A, 2.5; vol. 4, 2.1; AMD APM vol. 2, 3.1.7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from innkeeper.errors import BadRequest
from innkeeper.inspect.paging import CR0_PE, EFER_LMA, PagingState

_CPU: Final = re.compile(r"^\s*CPU#(\d+)", re.M)
_SEGMENT: Final = re.compile(
    r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-fA-F]+) ([0-9a-fA-F]+) ([0-9a-fA-F]+) ([0-9a-fA-F]+)", re.M
)
_TABLE: Final = re.compile(r"^(GDT|IDT)= *([0-9a-fA-F]+) ([0-9a-fA-F]+)", re.M)
_VALUE: Final = re.compile(r"\b([A-Z][A-Z0-9]{1,4}) *=([0-9a-fA-F]+)\b")
_VECTORS: Final = ("FPR", "XMM", "YMM", "ZMM")
_RFLAGS_VM: Final = 1 << 17
# Of the second word of a segment descriptor (SDM vol. 3A, 3.4.5).
_L, _DB = 1 << 21, 1 << 22

CR0_BITS: Final = {
    0: "PE", 1: "MP", 2: "EM", 3: "TS", 4: "ET", 5: "NE", 16: "WP", 18: "AM", 29: "NW", 30: "CD", 31: "PG",
}  # fmt: skip
CR4_BITS: Final = {
    0: "VME", 1: "PVI", 2: "TSD", 3: "DE", 4: "PSE", 5: "PAE", 6: "MCE", 7: "PGE", 8: "PCE", 9: "OSFXSR",
    10: "OSXMMEXCPT", 11: "UMIP", 12: "LA57", 13: "VMXE", 14: "SMXE", 16: "FSGSBASE", 17: "PCIDE",
    18: "OSXSAVE", 19: "KL", 20: "SMEP", 21: "SMAP", 22: "PKE", 23: "CET", 24: "PKS", 25: "UINTR",
    28: "LAM_SUP",
}  # fmt: skip
EFER_BITS: Final = {
    0: "SCE", 8: "LME", 10: "LMA", 11: "NXE", 12: "SVME", 13: "LMSLE", 14: "FFXSR", 15: "TCE",
}  # fmt: skip

_ADDRESS: Final = re.compile(r"([a-z][a-z0-9]*)(?:([+-])(0x[0-9a-f]+|[0-9]+))?")
_HEX: Final = re.compile(r"(?:0x)?([0-9a-f][0-9a-f_`]*)")


@dataclass(frozen=True, slots=True)
class Segment:
    selector: int
    base: int
    limit: int
    flags: int


@dataclass(frozen=True)
class Registers:
    """Of one vCPU at one moment. General registers have their 64-bit names in every mode."""

    cpu: int
    values: Mapping[str, int]  # RAX..R15, RIP, RFL, CPL, HLT, SMM, A20, CR0, CR2, CR3, CR4, EFER
    segments: Mapping[str, Segment]  # ES..GS, LDT, TR
    tables: Mapping[str, Segment]  # GDT, IDT

    def paging(self, physical_bits: int = 52, *, gigabyte_pages: bool = True) -> PagingState:
        value = self.values
        return PagingState(
            value["CR0"], value["CR3"], value["CR4"], value["EFER"], physical_bits, gigabyte_pages
        )

    @property
    def mode(self) -> str:
        """`real`, `virtual-8086`, `protected-16`, `protected-32`, `compatibility` or `long`."""
        code = self.segments["CS"].flags
        if not self.values["CR0"] & CR0_PE:
            return "real"
        if self.values["RFL"] & _RFLAGS_VM:
            return "virtual-8086"
        if self.values["EFER"] & EFER_LMA:
            return "long" if code & _L else "compatibility"
        return "protected-32" if code & _DB else "protected-16"

    @property
    def ring(self) -> int:
        return self.values["CPL"]

    @property
    def halted(self) -> bool:
        """In `hlt`, waiting for an interrupt."""
        return bool(self.values.get("HLT", 0))

    @property
    def in_smm(self) -> bool:
        return bool(self.values.get("SMM", 0))

    def linear(self, register: str) -> int:
        """What a register points to, as a linear address: instruction and stack pointer with the base of
        their segment, which is 0 in long mode; all others as with a flat data segment, or DS's base."""
        name = register.upper()
        segment = {"RIP": "CS", "RSP": "SS", "RBP": "SS"}.get(name, "DS")
        base = 0 if self.mode == "long" or name == "CR2" else self.segments[segment].base
        mask = (1 << 64) - 1 if self.values["EFER"] & EFER_LMA else (1 << 32) - 1
        return self.values[name] + base & mask

    @property
    def rip(self) -> int:
        return self.linear("RIP")


def parse_registers(text: str) -> list[Registers]:
    """Every vCPU of an `info registers -a`; empty when the text is of no x86 CPU."""
    marks = list(_CPU.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    found = []
    for mark, end in zip(marks, ends, strict=False):
        one = _parse_one(int(mark.group(1)), text[mark.end() : end])
        if one is not None:
            found.append(one)
    return found


def _parse_one(cpu: int, text: str) -> Registers | None:
    segments = {
        match[1]: Segment(*(int(match[group], 16) for group in (2, 3, 4, 5)))
        for match in _SEGMENT.finditer(text)
    }
    tables = {
        match[1]: Segment(0, int(match[2], 16), int(match[3], 16), 0) for match in _TABLE.finditer(text)
    }
    values: dict[str, int] = {}
    for name, number in _VALUE.findall(text):
        if name not in segments and name not in tables and not name.startswith(_VECTORS):
            values.setdefault(_long_name(name), int(number, 16))
    needed = {"RIP", "RFL", "CPL", "CR0", "CR2", "CR3", "CR4", "EFER"}
    if not needed <= values.keys() or "CS" not in segments:
        return None
    return Registers(cpu, values, segments, tables)


def _long_name(name: str) -> str:
    """EAX, EIP, EFL as a 32-bit CPU is shown -> RAX, RIP, RFL."""
    return f"R{name[1:]}" if len(name) == 3 and name[0] == "E" else name


def names_of(value: int, bits: Mapping[int, str]) -> list[str]:
    """The flags that are set; one without a name is `bit N`."""
    return [bits.get(bit, f"bit {bit}") for bit in range(value.bit_length()) if value >> bit & 1]


@dataclass(frozen=True, slots=True)
class Place:
    """An address as it was asked for: a number, or a register and an offset to it."""

    number: int
    register: str = ""
    physical: bool = False

    def resolve(self, registers: Registers) -> int:
        """The number of it. Raises BadRequest for a register that this vCPU does not have."""
        if not self.register:
            return self.number
        name = _long_name(self.register.upper())
        descriptors = {**registers.segments, **registers.tables}
        if name in descriptors:
            base = descriptors[name].base
        elif name == "CR3":
            base = registers.values["CR3"] & ~0xFFF
        elif name in _POINTERS and name in registers.values:
            base = registers.linear(name)
        else:
            raise BadRequest(f"There is no address in {self.register}", hint=f"use one of {_KNOWN}")
        return base + self.number & (1 << 64) - 1


_POINTERS: Final = (
    *("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", "RIP", "CR2"),
    *(f"R{number}" for number in range(8, 16)),
    *(f"DR{number}" for number in range(4)),
)
_KNOWN: Final = "rip, rsp, rbp, rax to r15, cr2, cr3, dr0 to dr3, gdt, idt, tr, ldt, cs to gs"


def parse_place(text: str, *, physical: bool = False) -> Place:
    """An address: hexadecimal with or without 0x, or a register like `rip`, `rsp+0x10`, `cr2`; `cr3` is
    a physical one by itself. Raises BadRequest."""
    word = text.strip().lower()
    number = _HEX.fullmatch(word)
    if number:
        value = int(re.sub("[_`]", "", number[1]), 16)
        if value >= 1 << 64:
            raise BadRequest(f"The address {text!r} has more than 64 bits")
        return Place(value, physical=physical)
    named = _ADDRESS.fullmatch(word)
    if named is None:
        raise BadRequest(
            f"Not an address: {text!r}",
            hint="give it in hexadecimal, or as a register: 0xffffffff81000000, rip, rsp+0x10, cr2",
        )
    offset = int(named[3], 0) if named[3] else 0
    if physical and named[1] != "cr3":
        raise BadRequest(f"{named[1]} holds a virtual address", hint="leave out --physical, or give a number")
    return Place(-offset if named[2] == "-" else offset, named[1], physical or named[1] == "cr3")
