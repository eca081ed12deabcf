"""Quality of service: what an instance is promised of its host, and what it may take at most.

The triple is that of proportional-share resource management: `shares` say who gets more where there is not
enough for all, a `reservation` is had whatever the others do, a `limit` is never exceeded (C. Waldspurger,
Memory Resource Management in VMware ESX Server, OSDI 2002, sections 4 and 5).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from innkeeper.errors import BadRequest
from innkeeper.spec.base import Model, Size
from innkeeper.spec.cpu import MAX_VCPUS
from innkeeper.spec.diskqos import DiskLimits
from innkeeper.units import format_cores, format_size, parse_cores, parse_size

ShareWord = Literal["low", "normal", "high"]
# Per vCPU, and per MiB of memory the same numbers divided by 100: 5, 10 and 20.
SHARES: Final[dict[ShareWord, int]] = {"low": 500, "normal": 1000, "high": 2000}
MIN_SHARES: Final = 1
MAX_SHARES: Final = 100_000


def _cores(value: Any) -> int:
    try:
        return parse_cores(value)
    except BadRequest as error:
        raise ValueError(str(error)) from None
    except TypeError:
        raise ValueError(f"Not an amount of CPU: {value!r}; write it like 1.5 or 1500m") from None


def _shares(value: Any) -> Any:
    """A number given as text, as `inn set` gives it, is a number; nothing is what it would be unasked."""
    if value == "":
        return "normal"
    if isinstance(value, str) and value in SHARES:
        return value
    text = "" if isinstance(value, bool) else str(value)
    short = len(text) <= len(str(MAX_SHARES))
    if not (short and text.isascii() and text.isdigit() and MIN_SHARES <= int(text) <= MAX_SHARES):
        said = f"write low, normal, high or a number from {MIN_SHARES} to {MAX_SHARES}"
        raise ValueError(f"Not shares: {str(value)[:60]}; {said}")
    return int(text)


def _or_none(value: Any) -> Any:
    """`inn set web qos.cpu.limit=` takes a limit away."""
    return None if value == "" else value


def _or_nothing(value: Any) -> Any:
    return 0 if value == "" else value


def _or_auto(value: Any) -> Any:
    return "auto" if value == "" else value


def _or_plain(value: Any) -> Any:
    """`inn set web qos.cpu=` takes away all that was asked for."""
    return {} if value == "" else value


def _swap(value: Any) -> Any:
    if value in ("", "auto", "never"):
        return value or "auto"
    try:
        return parse_size(value)
    except (BadRequest, TypeError):
        said = "write auto, never, or how much at most, such as 256MiB"
        raise ValueError(f"Not what may be swapped: {value!r}; {said}") from None


# In thousandths of a core. Always written as text: a plain number read back would be one of cores.
Cores = Annotated[int, BeforeValidator(_cores), PlainSerializer(format_cores, return_type=str)]
Shares = Annotated[ShareWord | Annotated[int, Field(ge=MIN_SHARES, le=MAX_SHARES)], BeforeValidator(_shares)]


def share_number(shares: ShareWord | int) -> int:
    return shares if isinstance(shares, int) else SHARES[shares]


class CpuQos(Model):
    """CPU time of the whole VM: vCPUs and QEMU's own threads."""

    shares: Shares = Field(
        default="normal",
        description="low, normal or high (500, 1000, 2000), or a number, per vCPU: its part of a busy host.",
    )
    reservation: Annotated[Cores, BeforeValidator(_or_nothing)] = Field(
        default=0, description="Cores it has whenever it wants them, such as 1.5 or 1500m."
    )
    limit: Annotated[Cores | None, BeforeValidator(_or_none)] = Field(
        default=None, description="Cores it takes at most. Default: none."
    )

    @model_validator(mode="after")
    def _ordered(self) -> CpuQos:
        if self.limit is not None and self.limit == 0:
            raise ValueError("a limit of 0 cores would stop it; use inn pause")
        if self.limit is not None and self.limit > MAX_VCPUS * 1000:
            raise ValueError(
                f"a limit of {format_cores(self.limit)} cores is more than a VM can have ({MAX_VCPUS});"
                " thousandths of a core are written like 1500m"
            )
        if self.limit is not None and self.reservation > self.limit:
            raise ValueError(
                f"a reservation of {format_cores(self.reservation)} cores is more than"
                f" the limit of {format_cores(self.limit)}"
            )
        return self


class CpuQosUpdate(Model):
    """Values as a person writes them; the whole they make is checked."""

    shares: str | int | None = Field(default=None, description="low, normal, high or a number.")
    reservation: str | float | None = Field(default=None, description="Cores, such as 1.5 or 1500m.")
    limit: str | float | None = Field(default=None, description="Cores; empty text: no limit any more.")


class MemoryQos(Model):
    """Memory of the host that the guest's RAM lies in, and what QEMU needs beside it."""

    shares: Shares = Field(
        default="normal", description="low, normal or high, or a number: who keeps more when memory is short."
    )
    reservation: Annotated[Size, BeforeValidator(_or_nothing)] = Field(
        default=0, description="Memory of the host it keeps whatever happens: never ballooned or swapped."
    )
    limit: Annotated[Size | None, BeforeValidator(_or_none)] = Field(
        default=None,
        description="Memory of the host it may take, guest RAM and QEMU together. Default: what it needs.",
    )
    swap: Annotated[Literal["auto", "never"] | Size, BeforeValidator(_swap)] = Field(
        default="auto",
        description="`auto`: swapped out when the host is pressed; `never`; or up to so much.",
    )
    balloon: Annotated[Literal["auto", "never"], BeforeValidator(_or_auto)] = Field(
        default="auto", description="`auto`: memory it leaves idle goes to others when the host is pressed."
    )
    reporting: bool = Field(
        default=False,
        description="Its guest gives back at once what it frees, unasked (free page reporting). It cannot be"
        " forked while it runs then, nor its memory saved.",
    )

    def in_groups(self) -> bool:
        """Whether anything of it takes a control group; the balloon does not."""
        plain = MemoryQos()
        return (self.shares, self.reservation, self.limit, self.swap) != (
            plain.shares, plain.reservation, plain.limit, plain.swap,
        )  # fmt: skip

    def fits(self, *, dedicated: bool) -> None:
        """Raises ValueError where memory that is `dedicated` would be given back."""
        if self.reporting and dedicated:
            raise ValueError(
                "qos.memory.reporting gives memory back that hugepages, locked and prealloc are to keep"
            )

    @model_validator(mode="after")
    def _ordered(self) -> MemoryQos:
        if self.limit is not None and self.reservation > self.limit:
            raise ValueError(
                f"a reservation of {format_size(self.reservation)} is more than"
                f" the limit of {format_size(self.limit)}"
            )
        return self


class DiskQos(DiskLimits):
    """Limits of all its disks together: what one takes, the others do not get. A disk with limits of its own
    (`disks.N.qos`) has those instead. Shares are kept by the host's I/O scheduler, where that knows any."""

    shares: Shares = Field(
        default="normal",
        description="low, normal or high, or a number: its part of a disk of the host that is busy.",
    )


class Qos(Model):
    """Everything may change while the instance runs."""

    cpu: Annotated[CpuQos, BeforeValidator(_or_plain)] = CpuQos()
    memory: Annotated[MemoryQos, BeforeValidator(_or_plain)] = MemoryQos()
    disk: Annotated[DiskQos, BeforeValidator(_or_plain)] = DiskQos()


class MemoryQosUpdate(Model):
    """Values as a person writes them; the whole they make is checked."""

    shares: str | int | None = Field(default=None, description="low, normal, high or a number.")
    reservation: str | int | None = Field(default=None, description="Memory of the host, such as 256MiB.")
    limit: str | int | None = Field(
        default=None, description="Memory of the host; empty text: no limit any more."
    )
    swap: str | int | None = Field(default=None, description="auto, never, or how much at most.")
    balloon: Literal["auto", "never"] | None = Field(default=None, description="Whether it gives any.")


class QosUpdate(Model):
    cpu: CpuQosUpdate | None = None
    memory: MemoryQosUpdate | None = None


class CpuReport(Model):
    """What CPU time a VM is promised."""

    shares: int = Field(description="Of the whole VM: per vCPU, times its vCPUs.")
    reservation: str = Field(description="Cores, as in the spec.")
    limit: str | None = Field(description="Cores; null: none.")
    entitlement: float | None = Field(
        default=None,
        description="Cores it gets when every VM of the host is busy; null: it does not run, or this host"
        " cannot keep shares.",
    )
    not_in_force: str = Field(default="", description="Why not; empty: it is as it says, or does not run.")


class MemoryReport(Model):
    """What memory of the host a VM is promised. Sizes in bytes."""

    shares: int = Field(description="For each MiB it was given.")
    reservation: int
    limit: int | None = Field(description="null: none.")
    swap: Literal["auto", "never"] | int = Field(description="As in the spec; a number: so much at most.")
    used: int | None = Field(
        default=None, description="What the kernel has in its account, page cache included; null: not known."
    )
    swapped: int | None = Field(default=None, description="What of it is in swap; null: not known.")
    kept_by: Literal["", "min", "not-swapped"] = Field(
        default="",
        description="How its reservation is kept: by the kernel's guarantee (memory.min), or by swapping"
        " nothing of it out, under cgroup v1. Empty: it has none, or is not in force.",
    )
    not_in_force: str = Field(default="", description="Why not; empty: it is as it says, or does not run.")


class DiskReport(Model):
    """What time of the host's disks a VM is promised."""

    shares: int = Field(description="Against those of other VMs on the same disk.")
    not_in_force: str = Field(default="", description="Why not; empty: it is as it says, or does not run.")


class QosReport(Model):
    """What a VM is promised, and what of that is in force."""

    cpu: CpuReport
    memory: MemoryReport
    disk: DiskReport
