"""What requests carry. Unknown fields are refused, like everywhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from innkeeper.spec.architecture import Architecture
from innkeeper.spec.base import Model, Name, Size, worded
from innkeeper.spec.cpu import MAX_VCPUS
from innkeeper.spec.instance import MAX_POOL, InstanceSpec
from innkeeper.spec.overcommit import KsmMode, Ratio

# A day: longer waits are asked for again, so that one forgotten request does not stay for ever.
Timeout = Annotated[float, Field(gt=0, le=86400, description="Seconds to wait at most.")]
PageSize = Annotated[
    str, Field(pattern=worded(r"^[1-9][0-9]*(KiB|MiB|GiB)$", "write a page size like 2MiB or 1GiB"))
]
Hold = Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$", description="Token of an open hold.")]


class CreateBody(Model):
    name: Name | None = Field(default=None, description="Chosen by the daemon when missing.")
    spec: InstanceSpec
    start: bool = False
    keep_on_failure: bool = Field(default=False, description="Keep the instance when its first start fails.")
    remove_when_ended: bool = Field(default=False, description="Remove the instance when its run ends.")
    hold: Hold = ""
    template: str = Field(default="", description="Start from this template; the spec must be like its own.")
    cold: bool = Field(default=False, description="Boot it, though a template of its image would fit.")
    wait: Literal["none", "running", "ready"] = Field(
        default="running",
        description="`none`: answer when it is accepted; `running`: when it is made and runs.",
    )
    timeout_s: Timeout | None = None


class ApplyBody(Model):
    spec: InstanceSpec
    before: dict[str, Any] | None = Field(
        default=None,
        description="The whole spec that this one was made from, as the API gave it: refused (conflict, with "
        "`stale` in its details) where somebody has changed it since. Default: whatever it was.",
    )


class VerbBody(Model):
    timeout_s: Timeout | None = None


class StartBody(VerbBody):
    wait: Literal["running", "ready"] = "running"


class ForkBody(VerbBody):
    count: int = Field(default=1, ge=1, le=1000)
    name: str = Field(default="", description="Pattern with {} for the number; default: PARENT-{}.")
    cpus: int | None = Field(
        default=None, ge=1, le=MAX_VCPUS, description="vCPUs of each copy; only of a parent that is off."
    )
    ssh_keys: bool = Field(default=False, description="New SSH host keys in each copy.")
    start: bool = Field(default=True, description="Of a stopped parent: start the copies.")
    remove_when_ended: bool = Field(default=False, description="Remove a copy when its run ends.")
    hold: Hold = ""
    wait: Literal["running", "ready"] = "ready"


class TemplateBody(VerbBody):
    pool: int | None = Field(default=None, ge=0, le=MAX_POOL, description="Copies spawned ahead.")
    serves_image: bool | None = Field(
        default=None, description="Whether new instances of its image start from it, where it fits."
    )


class CloneBody(VerbBody):
    name: Name
    ssh_keys: bool = Field(default=False, description="New SSH host keys at its first boot.")
    start: bool = True
    hold: Hold = ""
    wait: Literal["running", "ready"] = "running"


class HoldBody(Model):
    token: str = Field(pattern=r"^[0-9a-f]{16}$", description="Chosen by the client.")


class SnapshotBody(VerbBody):
    name: Name | None = Field(default=None, description="Default: s1, s2, ... the next free one.")
    disks_only: bool = Field(default=False, description="Without memory.")
    compress: bool = Field(default=False, description="Compress the memory (zstd).")


class RestoreBody(VerbBody):
    new_name: Name | None = Field(default=None, description="Make a new instance instead.")
    ssh_keys: bool = Field(default=False, description="New SSH host keys in a new instance.")
    wait: Literal["running", "ready"] = "ready"


class SaveBody(VerbBody):
    compress: bool = Field(default=False, description="Compress the memory (zstd).")


# Debian Policy 5.6.1; no comma or slash, which would mean something else to apt.
Package = Annotated[
    str,
    Field(
        max_length=128,
        pattern=worded(r"^[a-z0-9][a-z0-9+.-]+$", "use the name of a Debian package, such as nginx"),
    ),
]


class OvercommitUpdate(Model):
    memory: Ratio = Field(default=1.0, description="See `settings.overcommit` of the host.")
    cpu: Ratio | None = Field(default=None, description="null: no limit.")


class HostUpdate(Model):
    """What may change on a host."""

    hugepages: dict[PageSize, int] = Field(
        default_factory=dict,
        description="How many huge pages of each size, such as 2MiB and 1GiB, to reserve.",
    )
    node: int | None = Field(default=None, ge=0, le=1023, description="On this NUMA node; default: on all.")

    ksm: KsmMode | None = Field(default=None, description="When equal pages of VMs are merged.")
    overcommit: OvercommitUpdate | None = None
    vms_memory: Size | Literal["none"] | None = Field(
        default=None, description="Memory that all VMs together are to take at most; none: what the host has."
    )

    @model_validator(mode="after")
    def _something(self) -> HostUpdate:
        if not self.hugepages and self.settings() == {}:
            raise ValueError("nothing to change: give hugepages, ksm, overcommit or vms_memory")
        return self

    def settings(self) -> dict[str, Any]:
        """The host's settings that it has (spec/overcommit.py)."""
        found: dict[str, Any] = {"ksm": self.ksm} if self.ksm is not None else {}
        ratios = self.overcommit.model_dump(exclude_unset=True) if self.overcommit else {}
        if self.vms_memory is not None:
            found["vms_memory"] = None if self.vms_memory == "none" else self.vms_memory
        return found | ({"overcommit": ratios} if ratios else {})

    @field_validator("hugepages")
    @classmethod
    def _not_negative(cls, value: dict[str, int]) -> dict[str, int]:
        for size, pages in value.items():
            if not 0 <= pages < 1 << 40:
                raise ValueError(f"{pages} pages of {size} cannot be reserved")
        return value


class BuildBody(Model):
    recipe: Literal["tiny", "debian"]
    name: Name | None = Field(default=None, description="Default: the recipe's name.")
    packages: tuple[Package, ...] = Field(
        default=(), max_length=500, description="Of debian: packages beside those of the recipe."
    )
    size: Size | None = Field(default=None, description="Of debian: size of the disk; default: 4GiB.")
    arch: Architecture = Field(default="x86_64", description="Of tiny: the architecture of its guests.")


class ImportBody(Model):
    name: Name
    path: str = Field(
        min_length=1,
        description="Absolute path on the daemon's host.",
        pattern=worded(r"^/", "give an absolute path"),
    )
    os: Literal["linux", "windows", "other"] = Field(default="linux", description="What system is on it.")


class ExecFrame(Model):
    """The first frame of an exec socket."""

    argv: tuple[str, ...] = Field(min_length=1)
    env: dict[str, str] = Field(default_factory=dict)
    stdin: bool = False
    timeout_s: Timeout | None = None
