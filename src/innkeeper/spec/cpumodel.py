"""CPU models and flags: what an instance asks for, what a host can give, and what is missing. Pure.

Flags have QEMU's names; a few that Linux or the manuals call otherwise are understood (`canonical`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from pydantic import Field

from innkeeper.errors import Unsupported
from innkeeper.spec.architecture import AUTO_CPU, HOST
from innkeeper.spec.base import Model
from innkeeper.spec.cpu import Cpu

# Everything TCG can emulate, but for two features that make a guest copy memory with `rep movsb`: TCG
# runs that byte by byte. Without them a Debian boots in 12 s instead of 17, tiny in 1.18 instead of 1.27.
TCG_AUTO: Final = ("max", ("erms=off", "fsrm=off"))

# System V ABI, AMD64 supplement (psABI), section 3.1.1, table 3.1 "Micro-Architecture Levels", in QEMU's
# names. Each has what the ones before it have. OSXSAVE is the guest's own doing once there is `xsave`, LZCNT
# is `abm`.
_V2: Final = ("cx16", "lahf-lm", "popcnt", "pni", "sse4.1", "sse4.2", "ssse3")
_V3: Final = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave")
_V4: Final = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
# `qemu64` has the level 1 and little else, and is the same on every host.
LEVEL_BASE: Final = "qemu64"
LEVELS: Final[dict[str, tuple[str, ...]]] = {
    "x86-64-v1": (),
    "x86-64-v2": _V2,
    "x86-64-v3": (*_V2, *_V3),
    "x86-64-v4": (*_V2, *_V3, *_V4),
}
# Models without a list of flags of their own: they have whatever there is.
OPEN: Final = frozenset({"auto", "host", "max"})

_SYNONYMS: Final = {
    "sse3": "pni", "lzcnt": "abm", "xd": "nx", "i64": "lm", "pclmuldq": "pclmulqdq", "ffxsr": "fxsr-opt",
    "sse4-1": "sse4.1", "sse4-2": "sse4.2", "sha": "sha-ni", "pclmul": "pclmulqdq", "cmpxchg16b": "cx16",
    "lahf": "lahf-lm", "aes-ni": "aes",
}  # fmt: skip

Kind = Literal["kvm", "tcg"]


class CpuModel(Model):
    """One model, as QEMU describes it on a host."""

    name: str
    flags: tuple[str, ...] = Field(description="All that a guest with it should find.")
    missing: tuple[str, ...] = Field(default=(), description="What cannot be given here.")
    runnable: bool = Field(description="Nothing is missing.")
    description: str = ""
    alias_of: str = ""
    deprecated: bool = False


class CpuCatalogue(Model):
    """What one QEMU on one host can give its guests under one accelerator."""

    accelerator: Kind
    architecture: str = "x86_64"
    qemu: str = Field(description="Its version.")
    host_cpu: str = ""
    usable: bool = Field(default=True, description="Guests run at all under this accelerator.")
    note: str = ""
    flags: tuple[str, ...] = Field(description="All flags that can be given.")
    known: tuple[str, ...] = Field(description="All flags that this QEMU has a name for.")
    models: tuple[CpuModel, ...] = ()

    def model(self, name: str) -> CpuModel:
        """Raises Unsupported, with names that are close."""
        for model in self.models:
            if model.name == name:
                return model
        close = difflib.get_close_matches(name, [model.name for model in self.models], n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        raise Unsupported(
            f"QEMU {self.qemu} has no CPU model {name}",
            hint=f"{meant}see inn cpu models",
            details={"model": name, "close": close},
        )


def canonical(flag: str) -> str:
    """QEMU's name of a flag."""
    name = flag.lower().replace("_", "-")
    return _SYNONYMS.get(name, name)


def wanted_flags(features: Iterable[str]) -> dict[str, bool]:
    """`+aes`, `-avx` as flag and whether it is wanted; the last word on each counts."""
    return {canonical(feature[1:]): feature.startswith("+") for feature in features}


def with_levels(models: Iterable[CpuModel], available: Iterable[str]) -> tuple[CpuModel, ...]:
    """The models QEMU has, and the levels of the psABI built from one of them."""
    found = {model.name: model for model in models}
    there = frozenset(available)
    base = found.get(LEVEL_BASE)
    levels: list[CpuModel] = []
    for name, added in LEVELS.items() if base else ():
        assert base is not None
        missing = (*base.missing, *(flag for flag in added if flag not in there))
        levels.append(
            CpuModel(
                name=name,
                flags=tuple(sorted({*base.flags, *added})),
                missing=tuple(dict.fromkeys(missing)),
                runnable=not missing,
                description=f"level {name[-1]} of the x86-64 psABI",
            )
        )
    return (*levels, *found.values())


def refuse_missing(cpu: Cpu, accelerator: Kind, catalogue: CpuCatalogue) -> None:
    """Raises Unsupported for a model or flag that this host does not have, naming each flag."""
    wanted = wanted_flags(cpu.features)
    there, known = frozenset(catalogue.flags), frozenset(catalogue.known)
    for flag in wanted:
        if flag not in known and flag not in there:
            close = difflib.get_close_matches(flag, sorted(known), n=3)
            meant = f"did you mean {' or '.join(close)}? " if close else ""
            raise Unsupported(
                f"QEMU {catalogue.qemu} knows no CPU flag {flag}",
                hint=f"{meant}see inn cpu models {cpu.model if cpu.model not in OPEN else 'max'}",
                details={"flags": [flag]},
            )
    own = catalogue.model(cpu.model).missing if cpu.model not in OPEN else ()
    missing = [flag for flag in own if wanted.get(flag, True)]
    missing += [flag for flag, on in wanted.items() if on and flag not in there and flag not in missing]
    if not missing:
        return
    where = "KVM on this host" if accelerator == "kvm" else f"QEMU {catalogue.qemu} under TCG"
    asked = f"CPU model {cpu.model}" if own else "cpu.features"
    do_without = ",".join(f"-{flag}" for flag in missing)
    raise Unsupported(
        f"{asked} needs {', '.join(missing)}, which {where} does not have",
        hint=f"choose a model that runs here (inn cpu models), or do without: cpu.features={do_without}",
        details={"flags": missing, "accelerator": accelerator},
    )


# What a guest that knows it is one gains (Documentation/virt/kvm/x86/cpuid.rst): a clock without exits, time
# stolen by the host, interrupts ended and sent without exits, TLBs flushed without waking who sleeps, page
# faults of the host that do not stop the guest.
KVM_FEATURES: Final = (
    "kvmclock=on", "kvmclock-stable-bit=on", "kvm-steal-time=on", "kvm-pv-eoi=on", "kvm-pv-ipi=on",
    "kvm-pv-tlb-flush=on", "kvm-pv-unhalt=on", "kvm-pv-sched-yield=on", "kvm-asyncpf=on",
    "kvm-asyncpf-int=on",
)  # fmt: skip
# docs/system/i386/hyperv.rst: each needs those before it. 0x1fff spins before a guest tells its hypervisor is
# what Windows expects.
HYPERV_FEATURES: Final = (
    "hv-relaxed=on", "hv-vapic=on", "hv-spinlocks=0x1fff", "hv-time=on", "hv-vpindex=on", "hv-synic=on",
    "hv-stimer=on", "hv-runtime=on", "hv-reset=on", "hv-frequencies=on", "hv-ipi=on", "hv-tlbflush=on",
)  # fmt: skip
_SETS: Final[Mapping[str, tuple[str, ...]]] = {
    "kvm": KVM_FEATURES,
    "hyperv": HYPERV_FEATURES,
    "none": ("kvm=off",),
}


def paravirt_of(cpu: Cpu, accelerator: Kind, guest_os: str) -> str:
    """Which set a guest gets: `kvm`, `hyperv`, `none`, or "" where the accelerator has none to give. Raises
    Unsupported for one that was asked for by name and cannot be given."""
    if accelerator != "kvm":
        if cpu.paravirt in ("kvm", "hyperv"):
            raise Unsupported(
                f"cpu.paravirt: {cpu.paravirt} takes KVM, and this VM runs under TCG",
                hint="set cpu.paravirt to auto (or none); see inn doctor for KVM",
            )
        return ""
    if cpu.paravirt != "auto":
        return cpu.paravirt
    return "hyperv" if guest_os == "windows" else "kvm"


def cpu_argument(cpu: Cpu, accelerator: Kind, guest_os: str = "linux", *, architecture: str = HOST) -> str:
    """What QEMU is told after `-cpu`. Raises Unsupported for what no host has under this accelerator."""
    model, words = cpu.model, list[str]()
    if model == "host" and accelerator != "kvm":
        raise Unsupported(
            "CPU model host takes KVM, and this VM runs under TCG",
            hint="use cpu.model max, or auto; see inn doctor for KVM",
        )
    if architecture != HOST:
        return _foreign_argument(cpu, architecture)
    if model == "auto":
        model, words = ("host", []) if accelerator == "kvm" else (TCG_AUTO[0], list(TCG_AUTO[1]))
    if model in LEVELS:
        words += [f"{flag}=on" for flag in LEVELS[model]]
        model = LEVEL_BASE
    if paravirt := paravirt_of(cpu, accelerator, guest_os):
        # KVM's own are on by default in every model; the set is spelt out where somebody asked for it.
        words += _SETS[paravirt] if paravirt != "kvm" or cpu.paravirt == "kvm" else ()
    words += [f"{flag}={'on' if on else 'off'}" for flag, on in wanted_flags(cpu.features).items()]
    return ",".join([model, *words])


def _foreign_argument(cpu: Cpu, architecture: str) -> str:
    if cpu.model in LEVELS:
        raise Unsupported(
            f"CPU model {cpu.model} is for x86_64, and this guest is {architecture}",
            hint=f"leave cpu.model at auto, or take one that qemu-system-{architecture} -cpu help names",
        )
    model = AUTO_CPU[architecture] if cpu.model == "auto" else cpu.model
    words = [f"{feature[1:]}={'on' if feature.startswith('+') else 'off'}" for feature in cpu.features]
    return ",".join([model, *words])
