"""What the API needs from the rest of the daemon; the daemon's main puts it together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from innkeeper.agent.live import Live, Metering
from innkeeper.api.admit import Admission
from innkeeper.api.index import Index
from innkeeper.api.trials import Trials
from innkeeper.api.verbs.advise import Sources
from innkeeper.clock import Clock
from innkeeper.paths import Paths
from innkeeper.spec.image import ImageRecord
from innkeeper.spec.overcommit import HostSettings
from innkeeper.store.kv import Store
from innkeeper.store.repo import Repo

API_VERSION = 1

# stage, fraction done or None when not known, detail
GuestOs = Literal["linux", "windows", "other"]
Progress = Callable[[str, float | None, str], None]


class ImageService(Protocol):
    """Makes and removes images, files and record. `progress` may be called from the loop's thread only."""

    async def build(
        self,
        recipe: str,
        name: str,
        progress: Progress,
        *,
        packages: Sequence[str] = (),
        size_bytes: int | None = None,
        arch: str = "x86_64",
    ) -> ImageRecord:
        """Build by a recipe and name it, with more packages and on a disk of this size if the recipe has
        a choice. Cancelling leaves nothing behind. Raises BadRequest for what a recipe cannot do."""

    async def import_(
        self, name: str, path: Path, progress: Progress, *, guest_os: GuestOs = "linux"
    ) -> ImageRecord:
        """Take over a file of this host. Cancelling leaves nothing behind."""

    async def remove(self, name: str) -> None:
        """Remove the record, and the files if no other name has them. The API has checked that no
        instance uses it, and marked the record as `removing`."""


class Doctor(Protocol):
    async def __call__(self, *, fix: bool = False) -> Sequence[Mapping[str, Any]]:
        """Findings: name, verdict, detail, repair, fixable. With `fix` repair what can be first."""


class HugePages(Protocol):
    async def resize(self, page_bytes: int, pages: int, node: int | None) -> int:
        """Make the pool of this host, or of one NUMA node, so large. Raises NoCapacity with the number
        missing, and the pool is as it was; WrongState when too many are in use; Unsupported, NotFound."""


class Settings(Protocol):
    async def change(self, changes: dict[str, Any]) -> HostSettings:
        """Take up these fields of the host's settings, durably; the others stay. Raises BadRequest, Failed,
        NoCapacity; nothing is changed then."""


@dataclass(frozen=True)
class ApiDeps:
    """`closing` is set by the daemon when it is about to stop: endless streams end then."""

    store: Store
    repo: Repo
    paths: Paths
    clock: Clock
    live: Live
    metering: Metering
    images: ImageService
    doctor: Doctor
    host: str
    version: str
    mode: str  # system or session
    started_at: float
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    look_again: Callable[[], Awaitable[None]] | None = None  # refreshes the record of this host
    hugepages: HugePages | None = None
    settings: Settings | None = None


@dataclass(frozen=True)
class Context:
    """`ApiDeps` and what the API itself keeps; every router works on this."""

    deps: ApiDeps
    index: Index
    admission: Admission
    sources: Sources
    trials: Trials
    holds: set[str] = field(default_factory=set)  # tokens of those that are open (holds.py)
