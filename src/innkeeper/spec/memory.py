"""An instance's memory: how much, of which pages, and what is promised of it."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, field_validator, model_validator

from innkeeper.spec.base import Model, Size
from innkeeper.units import GiB, MiB, format_size, parse_size

MIN_BYTES: Final = 16 * MiB
MAX_BYTES: Final = 16 * 1024 * GiB

HugePageSize = Literal["", "2MiB", "1GiB"]
ThpMode = Literal["auto", "always", "never"]
# What the kernel may say of huge pages of memory files, if it makes any (Documentation/admin-guide/mm/
# transhuge.rst, "Hugepages in tmpfs/shmem"), and where.
THP_OF_FILES_GIVEN: Final = ("always", "within_size", "advise", "force")
THP_OF_FILES: Final = "sys/kernel/mm/transparent_hugepage/shmem_enabled"


class Memory(Model):
    size: Size = Field(default=256 * MiB, description="Guest RAM.")

    @field_validator("size")
    @classmethod
    def _sensible(cls, value: int) -> int:
        if value < MIN_BYTES or value > MAX_BYTES or value % MiB:
            raise ValueError(
                f"memory is a whole number of MiB, from {format_size(MIN_BYTES)} to {format_size(MAX_BYTES)}"
            )
        return value

    max: Size | None = Field(
        default=None,
        description="Up to how much it may get while it runs; it grows and shrinks in steps of 128MiB or"
        " more, down to what it was started with. Default: none.",
    )
    hugepages: HugePageSize = Field(
        default="", description="Take RAM from the host's pool of huge pages of this size (`inn host set`)."
    )
    locked: bool = Field(default=False, description="Keep all of QEMU's memory from being swapped out.")
    prealloc: bool = Field(default=False, description="Take all RAM from the host at the start.")
    merge: Literal["auto", "never"] = Field(
        default="auto",
        description="`never`: no page of it is merged with an equal one of another VM, which could tell from "
        "how long a write takes that there is one.",
    )
    thp: ThpMode = Field(
        default="auto",
        description="Transparent huge pages: `auto` as the host does by itself, `always` asks for them, "
        "`never` keeps them off.",
    )

    @model_validator(mode="after")
    def _whole_pages(self) -> Memory:
        page = self.page_bytes
        if page and self.size % page:
            raise ValueError(
                f"{format_size(self.size)} is not a whole number of huge pages of {self.hugepages}"
            )
        if page and self.thp != "auto":
            raise ValueError("transparent huge pages are for ordinary memory: leave out thp or hugepages")
        return self

    @model_validator(mode="after")
    def _room(self) -> Memory:
        if self.max is not None and not self.size <= self.max <= MAX_BYTES:
            raise ValueError(
                f"{format_size(self.size)} of memory are more than the {format_size(self.max)} that "
                "memory.max allows"
            )
        return self

    @property
    def page_bytes(self) -> int:
        """Of the huge pages asked for; 0: ordinary pages."""
        return parse_size(self.hugepages) if self.hugepages else 0

    @property
    def dedicated(self) -> bool:
        """All of it is taken from the host, whatever the guest uses."""
        return bool(self.hugepages) or self.locked or self.prealloc


# Linux adds memory in blocks of this on x86, on hosts and guests of 64 GiB and more of 2 GiB
# (arch/x86/mm/init_64.c, memory_block_size_bytes).
BLOCK_BYTES: Final = 128 * MiB
LARGE_BLOCK_BYTES: Final = 2 * GiB
LARGE_GUEST_BYTES: Final = 64 * GiB
# Each step is a module with a slot of its own; QEMU has 256.
MAX_SLOTS: Final = 32


def steps(memory: Memory, boot_bytes: int) -> tuple[int, int]:
    """How many modules there is room for, and of which size, in a VM that is started with `boot_bytes`."""
    if memory.max is None:
        return 0, 0
    block = LARGE_BLOCK_BYTES if memory.max >= LARGE_GUEST_BYTES else BLOCK_BYTES
    block = max(block, memory.page_bytes)
    more = memory.max - boot_bytes
    step = max(block, -(-more // MAX_SLOTS // block) * block)
    return max(0, more // step), step


class MemoryNow(Model):
    """What a running VM has. `step` zero: it can get no more while it runs."""

    size: int = Field(default=0, description="Bytes it has; 0: it does not run.")
    start: int = Field(default=0, description="Bytes it was started with: it cannot shrink below that.")
    most: int = Field(default=0, description="Bytes it can get without a restart.")
    step: int = Field(default=0, description="It grows and shrinks in steps of so many bytes.")


class MemoryUpdate(Model):
    """What may change on a running instance that was started with `memory.max`."""

    size: Size | None = Field(default=None, description="Guest RAM.")
