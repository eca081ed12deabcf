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


class Memory(Model):
    size: Size = Field(default=256 * MiB, description="Guest RAM.")

    @field_validator("size")
    @classmethod
    def _sensible(cls, value: int) -> int:
        if value < MIN_BYTES or value > MAX_BYTES or value % MiB:
            raise ValueError("memory is a whole number of MiB, at least 16MiB")
        return value

    hugepages: HugePageSize = Field(
        default="", description="Take RAM from the host's pool of huge pages of this size (`inn host set`)."
    )
    locked: bool = Field(default=False, description="Keep all of QEMU's memory from being swapped out.")
    prealloc: bool = Field(default=False, description="Take all RAM from the host at the start.")
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

    @property
    def page_bytes(self) -> int:
        """Of the huge pages asked for; 0: ordinary pages."""
        return parse_size(self.hugepages) if self.hugepages else 0

    @property
    def dedicated(self) -> bool:
        """All of it is taken from the host, whatever the guest uses."""
        return bool(self.hugepages) or self.locked or self.prealloc
