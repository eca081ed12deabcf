"""CPU models and flags: what QEMU is told, and what is refused with which words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from innkeeper.agent.cpus import as_catalogue
from innkeeper.engine.qemu.cpumodels import Definition, Told
from innkeeper.errors import Unsupported
from innkeeper.spec.cpu import Cpu
from innkeeper.spec.cpumodel import (
    HYPERV_FEATURES,
    KVM_FEATURES,
    LEVELS,
    CpuCatalogue,
    Kind,
    canonical,
    cpu_argument,
    refuse_missing,
)

KVM_SET, HYPERV_SET = ",".join(KVM_FEATURES), ",".join(HYPERV_FEATURES)
V2 = "qemu64,cx16=on,lahf-lm=on,popcnt=on,pni=on,sse4.1=on,sse4.2=on,ssse3=on"

ARGUMENTS: dict[str, tuple[dict[str, Any], Kind, str, str]] = {
    # spec, accelerator, guest, -cpu
    "tcg": ({}, "tcg", "linux", "max,erms=off,fsrm=off"),
    "kvm": ({}, "kvm", "linux", "host"),
    "kvm, windows": ({}, "kvm", "windows", f"host,{HYPERV_SET}"),
    "tcg, windows": ({}, "tcg", "windows", "max,erms=off,fsrm=off"),
    "max is all": ({"model": "max"}, "tcg", "linux", "max"),
    "a model": ({"model": "Nehalem"}, "tcg", "linux", "Nehalem"),
    "a level": ({"model": "x86-64-v2"}, "tcg", "linux", V2),
    "the lowest level": ({"model": "x86-64-v1"}, "kvm", "linux", "qemu64"),
    "flags": ({"features": ["+AES", "-avx"]}, "tcg", "linux", "max,erms=off,fsrm=off,aes=on,avx=off"),
    "flags as Linux calls them": (
        {"model": "Nehalem", "features": ["-sse4_2", "+lahf_lm", "-sse3"]},
        "kvm",
        "linux",
        "Nehalem,sse4.2=off,lahf-lm=on,pni=off",
    ),
    "the last word counts": ({"model": "max", "features": ["-aes", "+aes"]}, "tcg", "linux", "max,aes=on"),
    "a slow flag all the same": ({"features": ["+erms"]}, "tcg", "linux", "max,erms=off,fsrm=off,erms=on"),
    "kvm's own, by name": ({"paravirt": "kvm"}, "kvm", "windows", f"host,{KVM_SET}"),
    "hyperv, by name": ({"paravirt": "hyperv"}, "kvm", "linux", f"host,{HYPERV_SET}"),
    "none": ({"paravirt": "none"}, "kvm", "linux", "host,kvm=off"),
    "none under tcg": ({"paravirt": "none"}, "tcg", "linux", "max,erms=off,fsrm=off"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_cpu_argument(case: str) -> None:
    spec, accelerator, guest_os, argument = ARGUMENTS[case]
    assert cpu_argument(Cpu.model_validate(spec), accelerator, guest_os) == argument


def test_cpus_of_other_architectures() -> None:
    assert cpu_argument(Cpu(), "tcg", architecture="aarch64") == "max,pauth-impdef=on"
    assert cpu_argument(Cpu(), "tcg", architecture="riscv64") == "rv64,sstc=off"
    own = Cpu.model_validate({"model": "cortex-a72", "features": ["-pmu"]})
    assert cpu_argument(own, "tcg", architecture="aarch64") == "cortex-a72,pmu=off"
    with pytest.raises(Unsupported, match="is for x86_64, and this guest is aarch64"):
        cpu_argument(Cpu(model="x86-64-v2"), "tcg", architecture="aarch64")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"model": "host"}, "CPU model host takes KVM"),
        ({"paravirt": "kvm"}, "kvm takes KVM"),
        ({"paravirt": "hyperv"}, "hyperv takes KVM"),
    ],
)
def test_what_takes_kvm(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        cpu_argument(Cpu.model_validate(spec), "tcg")


def _told() -> Told:
    level1 = {"sse": True, "sse2": True, "lm": True, "i64": True}
    best = level1 | {"pni": True, "sse3": True, "ssse3": True, "cx16": True, "lahf-lm": True, "lahf_lm": True}
    best |= {"popcnt": True, "sse4.1": True, "sse4_2": True, "avx": False, "hle": False, "rtm": False}
    best |= {"check": True, "x-force": True, "kvmclock": False, "kvm-steal-time": True, "hv-time": False}
    best |= {"family": 15, "aes": True}
    return Told(
        best,
        (
            Definition("qemu64", (), level1, "qemu64-v1"),
            Definition("Haswell", ("avx", "hle", "rtm", "avx"), level1 | {"avx": True, "hle": True}),
        ),
    )


@pytest.fixture
def catalogue() -> CpuCatalogue:
    return as_catalogue(_told(), "tcg", "7.2.22", "Some CPU")


def test_the_catalogue(catalogue: CpuCatalogue) -> None:
    assert {"aes", "pni", "sse4.2", "lahf-lm"} <= set(catalogue.flags)
    others = {"sse3", "sse4_2", "lahf_lm", "check", "x-force", "kvm-steal-time", "family", "avx", "i64"}
    assert not others & set(catalogue.flags)
    assert "avx" in catalogue.known and "hv-time" not in catalogue.known
    runs = {model.name: model.runnable for model in catalogue.models}
    assert runs == {
        "max": True, "x86-64-v1": True, "x86-64-v2": True, "x86-64-v3": False, "x86-64-v4": False,
        "qemu64": True, "Haswell": False,
    }  # fmt: skip
    assert catalogue.model("Haswell").missing == ("avx", "hle", "rtm")
    assert set(catalogue.model("x86-64-v3").missing) == set(LEVELS["x86-64-v3"]) - set(LEVELS["x86-64-v2"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a model": (
        {"model": "Haswell"},
        "model Haswell needs avx, hle, rtm, which QEMU 7.2.22 under TCG",
    ),
    "a part of it left out": ({"model": "Haswell", "features": ["-hle", "-rtm"]}, "Haswell needs avx, which"),
    "a level": ({"model": "x86-64-v3"}, "x86-64-v3 needs avx, avx2, bmi1"),
    "a flag": ({"features": ["+avx"]}, r"cpu\.features needs avx, which"),
    "a flag no host has": ({"features": ["+axv"]}, "knows no CPU flag axv; did you mean avx"),
    "a model nobody knows": ({"model": "Haswel"}, "no CPU model Haswel; did you mean Haswell"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, catalogue: CpuCatalogue) -> None:
    spec, said = REFUSED[case]
    with pytest.raises(Unsupported) as caught:
        refuse_missing(Cpu.model_validate(spec), "tcg", catalogue)
    assert re.search(said, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"features": ["+aes", "-avx", "-hle"]},
        {"model": "x86-64-v2"},
        {"model": "Haswell", "features": ["-avx", "-hle", "-rtm"]},
        {"model": "max", "features": ["+sse4_2"]},
    ],
)
def test_accepted(spec: dict[str, Any], catalogue: CpuCatalogue) -> None:
    refuse_missing(Cpu.model_validate(spec), "tcg", catalogue)


def test_names_of_flags() -> None:
    assert [canonical(name) for name in ("SSE4_2", "lzcnt", "lahf_lm", "aes")] == [
        "sse4.2", "abm", "lahf-lm", "aes",
    ]  # fmt: skip
