"""What a control group can be told, and what that is called under cgroup v1 and v2. Pure.

Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst, Documentation/scheduler/sched-bwc.rst and
Documentation/admin-guide/cgroup-v1/{memory,blkio-controller}.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from innkeeper.errors import Unsupported

Controller = Literal["cpu", "cpuacct", "memory", "io"]
Version = Literal[1, 2]

# cgroup-v2.rst, "Weights": 1 to 10000, 100 by default; v1 calls 1024 what v2 calls 100 (kernel/sched/sched.h,
# sched_weight_from_cgroup).
WEIGHT_MIN: Final = 1
WEIGHT_MAX: Final = 10_000
_WEIGHT_UNTOLD: Final = 100
_SHARES_OF_100: Final = 1024
_SHARES_MIN: Final = 2
# kernel/sched/core.c: quota and period lie between 1 ms and 1 s.
PERIOD_DEFAULT_US: Final = 100_000
PERIOD_MIN_US: Final = 1_000
# io.weight has the range of all weights, BFQ's has a tenth (block/bfq-iosched.h, BFQ_MAX_WEIGHT).
_BFQ_WEIGHT_MAX: Final = 1_000
_V1_UNLIMITED: Final = "-1"
# /proc/sys/vm/swappiness where nobody changed it (mm/vmscan.c, vm_swappiness).
SWAPPINESS_DEFAULT: Final = 60


@dataclass(frozen=True)
class CpuWeight:
    """Its part of CPU time against its siblings, when all want more than there is. 100 is what a group has
    that was told nothing."""

    weight: int


@dataclass(frozen=True)
class CpuLimit:
    """At most `quota_us` of CPU time in each `period_us`, None: any amount. What was not used may be used
    later, up to `burst_us`."""

    quota_us: int | None
    period_us: int = PERIOD_DEFAULT_US
    burst_us: int = 0


@dataclass(frozen=True)
class MemoryMin:
    """So much is never taken from it, not even to avoid the end of another process. v2 only."""

    size_bytes: int


@dataclass(frozen=True)
class MemoryLow:
    """So much is taken from it last of all."""

    size_bytes: int


@dataclass(frozen=True)
class MemoryHigh:
    """From here on it is slowed down and its memory reclaimed; None: never. v2 only."""

    size_bytes: int | None


@dataclass(frozen=True)
class MemoryMax:
    """It never has more; the kernel ends a process in it first. None: any amount."""

    size_bytes: int | None


@dataclass(frozen=True)
class SwapMax:
    """So much of it may be in swap; None: any amount. v1 limits memory and swap together: there this needs
    to know the limit of memory (`memory_bytes`)."""

    size_bytes: int | None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Swappiness:
    """v1 only: how readily its memory is swapped out, 0 to 100. At 0 it is
    not, but by a host that would end a process otherwise; None: as the host does, `usual`. v2 says all of
    this with SwapMax."""

    value: int | None
    usual: int = SWAPPINESS_DEFAULT


@dataclass(frozen=True)
class IoWeight:
    """Its part of a busy disk against its siblings; 100 is what a group has that was told nothing."""

    weight: int


Setting = (
    CpuWeight | CpuLimit | MemoryMin | MemoryLow | MemoryHigh | MemoryMax | SwapMax | Swappiness | IoWeight
)


@dataclass(frozen=True)
class Write:
    """Values for files of one group. The kernel may have some of the files only; with `needed` it must have
    at least one, else the setting means what is so anyway."""

    controller: Controller
    values: tuple[tuple[str, str], ...]
    needed: bool = True


def controller_of(setting: Setting) -> Controller:
    if isinstance(setting, CpuWeight | CpuLimit):
        return "cpu"
    return "io" if isinstance(setting, IoWeight) else "memory"


def writes(setting: Setting, version: Version) -> tuple[Write, ...]:
    """Raises Unsupported for what this version has no word for."""
    return _v2(setting) if version == 2 else _v1(setting)


def clamp_weight(weight: float) -> int:
    return min(max(round(weight), WEIGHT_MIN), WEIGHT_MAX)


def shares_of(weight: int) -> int:
    """v1's name for a weight of v2."""
    return max(round(weight * _SHARES_OF_100 / 100), _SHARES_MIN)


def _v2(setting: Setting) -> tuple[Write, ...]:
    match setting:
        case CpuWeight(weight):
            return (_one("cpu", "cpu.weight", str(weight)),)
        case CpuLimit(quota, period, burst):
            limit = f"{'max' if quota is None else quota} {period}"
            return (
                _one("cpu", "cpu.max", limit),
                _one("cpu", "cpu.max.burst", str(burst), needed=burst > 0),
            )
        case MemoryMin(size):
            return (_one("memory", "memory.min", str(size)),)
        case MemoryLow(size):
            return (_one("memory", "memory.low", str(size)),)
        case MemoryHigh(most):
            return (_one("memory", "memory.high", _or_max(most)),)
        case MemoryMax(most):
            return (_one("memory", "memory.max", _or_max(most)),)
        case SwapMax(most):
            return (_one("memory", "memory.swap.max", _or_max(most), needed=most is not None),)
        case Swappiness():
            return ()
        case IoWeight(weight):
            files = (("io.weight", f"default {weight}"), ("io.bfq.weight", _bfq(weight)))
            return (Write("io", files, needed=weight != _WEIGHT_UNTOLD),)


def _v1(setting: Setting) -> tuple[Write, ...]:
    match setting:
        case CpuWeight(weight):
            return (_one("cpu", "cpu.shares", str(shares_of(weight))),)
        case CpuLimit(quota, period, burst):
            return (
                _one("cpu", "cpu.cfs_period_us", str(period)),
                _one("cpu", "cpu.cfs_quota_us", _V1_UNLIMITED if quota is None else str(quota)),
                _one("cpu", "cpu.cfs_burst_us", str(burst), needed=burst > 0),
            )
        case MemoryLow(size):
            # 0 would make it the first that is reclaimed from: what v2 calls no protection is no soft limit.
            text = str(size) if size else _V1_UNLIMITED
            return (_one("memory", "memory.soft_limit_in_bytes", text),)
        case MemoryMax(most):
            return (_one("memory", "memory.limit_in_bytes", _or_minus_1(most)),)
        case SwapMax(most, memory):
            if most is not None and memory is None:
                raise Unsupported(
                    "cgroup v1 limits memory and swap together: a limit of swap needs one of memory",
                    hint="give it a memory limit, too",
                )
            total = None if most is None or memory is None else memory + most
            text = _or_minus_1(total)
            return (_one("memory", "memory.memsw.limit_in_bytes", text, needed=total is not None),)
        case Swappiness(value, usual):
            text = str(usual if value is None else value)
            return (_one("memory", "memory.swappiness", text, needed=value is not None),)
        case IoWeight(weight):
            files = (("blkio.bfq.weight", _bfq(weight)), ("blkio.weight", _bfq(weight)))
            return (Write("io", files, needed=weight != _WEIGHT_UNTOLD),)
        case MemoryMin() | MemoryHigh():
            what = "a guaranteed minimum" if isinstance(setting, MemoryMin) else "a limit that slows down"
            raise Unsupported(
                f"cgroup v1 has no word for {what} of memory", hint="boot the host with cgroup v2"
            )


def _one(controller: Controller, file: str, text: str, *, needed: bool = True) -> Write:
    return Write(controller, ((file, text),), needed)


def _or_max(size: int | None) -> str:
    return "max" if size is None else str(size)


def _or_minus_1(size: int | None) -> str:
    return _V1_UNLIMITED if size is None else str(size)


def _bfq(weight: int) -> str:
    return str(min(max(weight, WEIGHT_MIN), _BFQ_WEIGHT_MAX))
