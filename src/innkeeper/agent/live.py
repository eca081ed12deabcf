"""The live seam: what can be done to a VM that runs on this host right now.

The API calls this and nothing else of the agent. Every operation raises WrongState when the VM does
not run and AgentMissing when it needs the guest agent and none answers, each with a hint; NotFound
when there is no such instance on this host. None of them may wait for a hung guest without a
deadline of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from innkeeper.spec.cpumodel import CpuCatalogue
from innkeeper.spec.finding import Finding
from innkeeper.spec.inspection import (
    AddressReport,
    CpuInspection,
    DiskInspection,
    MemoryMap,
    NetInspection,
)
from innkeeper.spec.metrics import History, Metrics
from innkeeper.spec.qos import QosReport
from innkeeper.spec.why import Why

LogSource = Literal["console", "qemu"]
STDOUT = 1
STDERR = 2


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """A command for the guest. The API enforces `timeout_s` itself, by `ExecSession.cancel`."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    stdin: bool = False  # whether stdin will be written; without it the command reads end of file
    timeout_s: float | None = None


class ConsoleTap(Protocol):
    """One viewer of a serial console.

    Iterating yields first the last few KiB of what was said before, then what comes, and ends when
    the VM does. A viewer that reads too slowly loses output; it never holds up the guest or the
    other viewers.
    """

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def write(self, data: bytes) -> None:
        """Type into the console."""

    async def close(self) -> None:
        """Detach. May be called twice."""


class ExecSession(Protocol):
    """A command running in the guest."""

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Pairs of STDOUT or STDERR and data, until the command has ended and all was read."""

    async def write(self, data: bytes) -> None:
        """Give it stdin; returns when there is room for more. What a command that has ended or
        closed its stdin would have read is dropped."""

    async def close_stdin(self) -> None:
        """End of stdin. May be called twice."""

    async def wait(self) -> int:
        """Its exit status once it has ended; 128 + the signal's number if one killed it."""

    async def cancel(self) -> None:
        """End it in the guest, if it has not ended, and release everything. May be called twice.

        Called exactly at the end of every session, whatever way it ended.
        """


class Live(Protocol):
    async def console(self, name: str) -> ConsoleTap: ...

    async def exec(self, name: str, request: ExecRequest) -> ExecSession: ...

    async def read_file(self, name: str, path: str) -> AsyncIterator[bytes]:
        """The bytes of a file in the guest. Opened before this returns: errors come from here, not
        in the middle. An async generator, closed by the caller (aclose) when given up early."""

    async def write_file(
        self, name: str, path: str, chunks: AsyncIterator[bytes], *, mode: int | None = None
    ) -> int:
        """Write a file in the guest, whole or not at all; returns the number of bytes."""

    async def screenshot(self, name: str) -> bytes:
        """What the graphics adapter shows, as PNG."""

    def logs(self, name: str, source: LogSource) -> Path:
        """Where a log of the instance lies; the file need not exist yet. Works while stopped."""

    async def argv(self, name: str) -> list[str]:
        """The exact QEMU command line: of the running process, or what a start would run."""

    async def inspect_memory(self, name: str, *, numa: bool = False) -> MemoryMap:
        """A map of all its memory. This and the other inspections never halt the VM, and raise EngineError
        when its QEMU hangs."""

    async def inspect_address(
        self, name: str, address: str, *, physical: bool = False, cpu: int = 0
    ) -> AddressReport:
        """One address down to the host's memory; BadRequest when it is none, NotFound for a vCPU that is
        not there. One that is not mapped is no error: the report says where the walk ended."""

    async def inspect_cpu(self, name: str) -> CpuInspection: ...

    async def inspect_disk(self, name: str) -> DiskInspection: ...

    async def inspect_net(self, name: str) -> NetInspection: ...

    def qos(self, name: str) -> QosReport:
        """What it is promised of its host, and what of that is in force. Works while stopped."""

    async def cpu_models(self, accelerator: Literal["kvm", "tcg"] | None = None) -> CpuCatalogue:
        """What CPU models and flags this host can give; if none is named, under what `auto` means."""

    async def explain_fork(self, name: str, *, copied: bool = False) -> list[Finding]:
        """What on this host speaks for and against a fork of it now, or with `copied` a clone. Works while
        stopped."""


class Metering(Protocol):
    """What VMs and their host use. Never waits for a VM that hangs."""

    async def metrics(self, max_age_s: float | None = None) -> Metrics:
        """All instances, sorted by name; with `max_age_s` read again if what is known is older."""

    def history(
        self,
        name: str,
        since: float,
        resolution_s: float,
        average: Collection[str] | None = None,
        peak: Collection[str] | None = None,
    ) -> History:
        """Of an instance, or of the host for the empty name: what ended after `since` (seconds since the
        epoch), in buckets of about `resolution_s` seconds. With `average` or `peak` of these values only: a
        day of all is dear. Raises NotFound."""

    async def why(self, name: str, since_s: float) -> Why:
        """What held an instance up in the last `since_s` seconds, and who used what it lacked. Raises
        NotFound; WrongState when it did not run then."""
