"""What a host gives out beyond what it has, and the account of what it owes."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from innkeeper.spec.base import Model, Size
from innkeeper.units import MiB

MIN_RATIO: Final = 0.1
MAX_RATIO: Final = 1000.0
MIN_VMS_MEMORY: Final = 64 * MiB

# The host's own part, kept from what may be promised: kernel, daemon, everything that is no VM. OpenStack
# Nova keeps 512 MiB by default (reserved_host_memory_mb), whatever the host's size.
KEPT_DIVISOR: Final = 16
MIN_KEPT_BYTES: Final = 128 * MiB
MAX_KEPT_BYTES: Final = 1024 * MiB

# Of a limit of memory, what is left to QEMU beside the guest's RAM: an idle one has 40 MiB of its own.
QEMU_BYTES: Final = 64 * MiB
# Under TCG it keeps what it translated as well, up to 1 GiB unless told otherwise (-accel tcg,tb-size=): a
# Debian of 512 MiB had 330 MiB of that when it had booted, and 280 more after it had run 24 commands. With 64
# it took no more CPU time for any of it, with 16 four times as much for a command. A guest of much RAM is
# likely to run more code at a time, so it gets an eighth of its RAM.
LEAST_TRANSLATED_BYTES: Final = 64 * MiB
MOST_TRANSLATED_BYTES: Final = 128 * MiB
TRANSLATED_PART: Final = 8

KsmMode = Literal["auto", "always", "never"]
KSM_MODES: Final = ("auto", "always", "never")


def translated_bytes(accelerator: str, memory_bytes: int) -> int:
    """What QEMU may keep of a guest's code that it translated; 0 where it translates none."""
    if accelerator != "tcg":
        return 0
    part = memory_bytes // TRANSLATED_PART // MiB * MiB
    return max(LEAST_TRANSLATED_BYTES, min(part, MOST_TRANSLATED_BYTES))


def beside_ram_bytes(translated: int) -> int:
    """What a balloon leaves to QEMU within the limit of its VM."""
    return QEMU_BYTES + translated


def _none(value: Any) -> Any:
    return None if value in ("", "none") else value


Ratio = Annotated[float, Field(ge=MIN_RATIO, le=MAX_RATIO, allow_inf_nan=False)]


class Overcommit(Model):
    """Of one host. Reservations are never overcommitted, whatever stands here."""

    memory: Ratio = Field(
        default=1.0,
        description="How much memory VMs may be given altogether: a multiple of what the host has for them.",
    )
    cpu: Annotated[Ratio | None, BeforeValidator(_none)] = Field(
        default=None, description="vCPUs for each CPU of the host at most. Default: no such limit."
    )


class HostSettings(Model):
    """What an administrator decides about a host; kept by its daemon."""

    ksm: KsmMode = Field(
        default="auto",
        description="Merging of equal pages: `auto` while memory is short, `always`, or `never`.",
    )
    overcommit: Overcommit = Overcommit()
    vms_memory: Annotated[Annotated[Size, Field(ge=MIN_VMS_MEMORY)] | None, BeforeValidator(_none)] = Field(
        default=None,
        description="Memory that all VMs together are to take at most; balloons see to it. Default: what the"
        " host has.",
    )


def kept_bytes(memory_bytes: int) -> int:
    """The host's own part of its memory."""
    return min(MAX_KEPT_BYTES, max(MIN_KEPT_BYTES, memory_bytes // KEPT_DIVISOR))


def needed_now(needed: int, ratio: float) -> int:
    """What must be there at a start, of the bytes a VM may take in time: all, unless the host gives out more
    than it has."""
    return needed if ratio <= 1 else int(needed / ratio)


class KsmReport(Model):
    """Kernel same-page merging on a host (Documentation/admin-guide/mm/ksm.rst)."""

    running: bool = Field(description="The kernel looks for equal pages now.")
    by: Literal["", "innkeeper", "others"] = Field(
        default="", description="Who turned it on: the daemon, or somebody else. Empty: it is off."
    )
    saved_bytes: int = Field(description="What the merged pages would take more if they were not merged.")
    profit_bytes: int | None = Field(
        default=None, description="That, less what the kernel needs to know of it. null: it does not say."
    )
    cpu: float | None = Field(default=None, description="CPUs that ksmd used of late; null: not known yet.")
    pages_to_scan: int = Field(default=0, description="Pages looked at in one go.")
    why: str = Field(default="", description="Why it is as it is, one line.")


class MemoryAccount(Model):
    """What this host owes its running VMs, in bytes of ordinary memory (none of huge pages)."""

    capacity: int = Field(description="What is there for VMs: all, less the host's part and huge pages.")
    kept: int = Field(description="The host's own part.")
    promised: int = Field(description="Reservations, and memory that is taken whole (locked, prealloc).")
    given: int = Field(description="What admission reckons with: a VM's most, of a fork what it may write.")
    worst: int = Field(description="What all of them could take at most, forks with every page written.")
    ratio: float = Field(description="`given` as a multiple of `capacity`.")
    worst_ratio: float = Field(description="`worst` as a multiple of `capacity`.")
    limit: float = Field(description="What `ratio` may become: overcommit.memory.")


class CpuAccount(Model):
    cpus: int = Field(description="CPUs of the host.")
    vcpus: int = Field(description="vCPUs of running VMs.")
    ratio: float
    limit: float | None = Field(description="What `ratio` may become: overcommit.cpu; null: anything.")


class Account(Model):
    memory: MemoryAccount
    cpu: CpuAccount
