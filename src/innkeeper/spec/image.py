"""An image: something an instance can be created from. Its files are named by their content."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from innkeeper.spec.base import Model, Name


class ImageRecord(Model):
    """What the store keeps of an image; its files lie under `images/<id>/` and never change."""

    name: Name
    id: str = Field(description="Content address: SHA-256 in hex over its files and how they boot.")
    kind: str = Field(description="`tiny`, `debian`, or `import`.")
    architecture: str = "x86_64"
    boot: Literal["kernel", "disk"] = Field(
        description="By its own kernel, or from its disk by the firmware."
    )
    os: Literal["linux", "windows", "other"] = Field(default="linux", description="What its guests are.")
    agent: bool = Field(default=False, description="Whether a guest agent answers in it.")
    size_bytes: int = Field(default=0, description="Of all its files on this host.")
    min_memory_bytes: int = Field(default=0, description="An instance with less would not boot.")
    origin: dict[str, Any] = Field(default_factory=dict, description="Where it came from.")
    created_at: float = Field(default=0.0, description="Seconds since the epoch.")
    removing: bool = Field(
        default=False, description="Its removal has begun: no instance may be created from it any more."
    )
