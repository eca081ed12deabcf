"""The API on a store in memory, with fakes for everything behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
from fastapi import FastAPI

from fakes import inspections
from fakes.settler import Settler
from innkeeper.agent.live import ExecRequest, LogSource
from innkeeper.api.app import create_app, serving
from innkeeper.api.deps import ApiDeps, Progress
from innkeeper.clock import SystemClock
from innkeeper.errors import BadImage, WrongState
from innkeeper.paths import Paths
from innkeeper.spec.cpumodel import CpuCatalogue, CpuModel
from innkeeper.spec.finding import Finding, warn
from innkeeper.spec.host import HostFacts, HostRecord
from innkeeper.spec.image import ImageRecord
from innkeeper.spec.inspection import (
    AddressReport,
    CpuInspection,
    DiskInspection,
    MemoryMap,
    NetInspection,
)
from innkeeper.spec.instance import InstanceRecord, InstanceSpec, InstanceStatus, State, Wanted
from innkeeper.spec.metrics import CpuMetrics, History, HostMetrics, InstanceMetrics, MemoryMetrics, Metrics
from innkeeper.spec.qos import CpuReport, QosReport
from innkeeper.spec.why import Cause, Why
from innkeeper.store.memory import MemoryStore
from innkeeper.store.repo import Repo
from innkeeper.units import GiB, MiB

FACTS = HostFacts(
    cpus=2,
    memory_bytes=8 * GiB,
    memory_available_bytes=6 * GiB,
    qemu="/usr/bin/qemu-system-x86_64",
    qemu_version="7.2.0",
    kvm="emulated",
    kvm_detail="2 million instructions/s",
    machine_types=("pc-q35-7.2", "pc-q35-7.1", "pc-i440fx-7.2"),
    machine_aliases={"q35": "pc-q35-7.2", "pc": "pc-i440fx-7.2"},
)
HOST = HostRecord(name="h1", machine_id="m", boot_id="b", observed_at=2e9, facts=FACTS)
TINY = ImageRecord(
    name="tiny",
    id="a" * 64,
    kind="tiny",
    boot="kernel",
    agent=True,
    min_memory_bytes=96 * MiB,
    created_at=1.0,
)
DEBIAN = TINY.model_copy(
    update={"name": "debian", "id": "d" * 64, "kind": "debian", "boot": "disk", "min_memory_bytes": 384 * MiB}
)
UID = "01234567-89ab-4cde-8f01-23456789abcd"


def record(name: str = "web", **wanted: Any) -> InstanceRecord:
    spec = InstanceSpec.model_validate({"image": "tiny", "machine": {"type": "pc-q35-7.2"}})
    return InstanceRecord(
        name=name, uid=UID, created_at=1.0, host="h1", image_id=TINY.id, spec=spec, wanted=Wanted(**wanted)
    )


class FakeConsole:
    """Says `said`, then echoes what is typed, and ends after a typed ``exit``."""

    def __init__(self, said: bytes = b"login: ") -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.queue.put_nowait(said)
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (data := await self.queue.get()) is not None:
            yield data

    async def write(self, data: bytes) -> None:
        self.queue.put_nowait(None if data == b"exit" else data)

    async def close(self) -> None:
        self.closed = True


class FakeExec:
    """`cat` echoes its stdin and exits with 0; `false` exits with 1; `sleep` never ends."""

    def __init__(self, request: ExecRequest) -> None:
        self.request = request
        self.stdin: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.cancelled = 0
        self.cancel_seen = asyncio.Event()

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        command = self.request.argv[0]
        if command == "sleep":
            await asyncio.Event().wait()
        if command == "false":
            yield 2, b"no\n"
            return
        while self.request.stdin and (data := await self.stdin.get()) is not None:
            yield 1, data

    async def write(self, data: bytes) -> None:
        self.stdin.put_nowait(data)

    async def close_stdin(self) -> None:
        self.stdin.put_nowait(None)

    async def wait(self) -> int:
        return 1 if self.request.argv[0] == "false" else 0

    async def cancel(self) -> None:
        self.cancelled += 1
        self.cancel_seen.set()


class FakeLive:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[str, bytes] = {}
        self.modes: dict[str, int | None] = {}
        self.consoles: list[FakeConsole] = []
        self.execs: list[FakeExec] = []
        self.broken: Exception | None = None
        self.inspected: list[tuple[object, ...]] = []

    def _check(self, name: str) -> None:
        if self.broken:
            raise self.broken
        if name == "off":
            raise WrongState("off is stopped", hint="inn start off")

    async def console(self, name: str) -> FakeConsole:
        self._check(name)
        self.consoles.append(FakeConsole())
        return self.consoles[-1]

    async def exec(self, name: str, request: ExecRequest) -> FakeExec:
        self._check(name)
        self.execs.append(FakeExec(request))
        return self.execs[-1]

    async def read_file(self, name: str, path: str) -> AsyncIterator[bytes]:
        self._check(name)

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(self.files[path]), 1000):
                yield self.files[path][start : start + 1000]

        return chunks()

    async def write_file(
        self, name: str, path: str, chunks: AsyncIterator[bytes], *, mode: int | None = None
    ) -> int:
        self._check(name)
        self.files[path] = b"".join([chunk async for chunk in chunks])
        self.modes[path] = mode
        return len(self.files[path])

    async def screenshot(self, name: str) -> bytes:
        self._check(name)
        return b"\x89PNG"

    def logs(self, name: str, source: LogSource) -> Path:
        return self.directory / f"{name}.{source}"

    async def explain_fork(self, name: str, *, copied: bool = False) -> list[Finding]:
        return [warn("nobody knows", "ask somebody")]

    async def inspect_memory(self, name: str, *, numa: bool = False) -> MemoryMap:
        self._check(name)
        self.inspected.append(("memory", numa))
        return inspections.MEMORY

    async def inspect_address(
        self, name: str, address: str, *, physical: bool = False, cpu: int = 0
    ) -> AddressReport:
        self._check(name)
        self.inspected.append((address, physical, cpu))
        return inspections.ADDRESS

    async def inspect_cpu(self, name: str) -> CpuInspection:
        self._check(name)
        return inspections.CPU

    async def inspect_disk(self, name: str) -> DiskInspection:
        self._check(name)
        return inspections.DISK

    async def inspect_net(self, name: str) -> NetInspection:
        self._check(name)
        return inspections.NET

    async def cpu_models(self, accelerator: Literal["kvm", "tcg"] | None = None) -> CpuCatalogue:
        models = (CpuModel(name="max", flags=("aes",), runnable=True),)
        return CpuCatalogue(
            accelerator=accelerator or "tcg",
            qemu="7.2.0",
            flags=("aes",),
            known=("aes", "avx"),
            models=models,
        )

    def qos(self, name: str) -> QosReport:
        return QosReport(cpu=CpuReport(shares=1000, reservation="0", limit=None, entitlement=0.5))

    async def argv(self, name: str) -> list[str]:
        return ["qemu-system-x86_64", "-name", name]


class FakeImages:
    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self.cancelled = False
        self.asked: tuple[Sequence[str], int | None] = ((), None)

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
        self.asked = (packages, size_bytes)
        progress("packages", 0.0, "busybox")
        progress("commit", None, "")
        image = TINY.model_copy(update={"name": name, "kind": recipe, "id": "b" * 64})
        await self.repo.put_image(image)
        return image

    async def import_(
        self, name: str, path: Path, progress: Progress, *, guest_os: str = "linux"
    ) -> ImageRecord:
        progress("inspect", 0.0, str(path))
        if path.name == "endless":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        raise BadImage(f"{path} is not a disk image", hint="give a raw or qcow2 image")

    async def remove(self, name: str) -> None:
        await self.repo.delete_image(name)


class FakeMetering:
    """Knows one instance, `off`, and the host."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    async def metrics(self, max_age_s: float | None = None) -> Metrics:
        self.asked.append(("metrics", max_age_s))
        host = HostMetrics(
            name="h1", at=1.0, cpus=2, used=0.5, load=(0.1, 0.2, 0.3), memory_bytes=8 * GiB,
            memory_available_bytes=6 * GiB, swap_bytes=0, swap_free_bytes=0,
        )  # fmt: skip
        off = InstanceMetrics(
            name="off", uid=UID, state="stopped", accelerator="", pid=0, at=0.0,
            cpu=CpuMetrics(given=1), memory=MemoryMetrics(given=256 * MiB),
        )  # fmt: skip
        return Metrics(host=host, instances=(off,))

    def history(
        self,
        name: str,
        since: float,
        resolution_s: float,
        average: Collection[str] | None = None,
        peak: Collection[str] | None = None,
    ) -> History:
        self.asked.append(("history", name, since, resolution_s, average, peak))
        values: dict[str, tuple[float | None, ...]] = {"cpu": (0.5, None)}
        return History(name=name or "h1", step_s=60, times=(0.0, 60.0), average=values, peak=values)

    async def why(self, name: str, since_s: float) -> Why:
        self.asked.append(("why", name, since_s))
        if since_s < 60:
            raise WrongState(f"{name} did not run in the last {since_s:g} s: it is stopped")
        cpu = Cause(resource="cpu", lost=0.5, verdict="waited", unit="cpus", capacity=2.0)
        return Why(
            name=name, uid=UID, state="stopped", accelerator="", begin=1.0, end=1.0 + since_s,
            known_s=since_s, step_s=5, verdict=cpu.verdict, causes=(cpu,),
        )  # fmt: skip


async def doctor(*, fix: bool = False) -> list[dict[str, Any]]:
    verdict = "ok" if fix else "warn"
    return [{"name": "kvm", "verdict": verdict, "detail": "", "repair": "", "fixable": True}]


@dataclass
class Api:
    """Everything a test wants to reach."""

    app: FastAPI
    store: MemoryStore
    repo: Repo
    live: FakeLive
    metering: FakeMetering
    images: FakeImages
    deps: ApiDeps
    settler: Settler = field(init=False)
    http: httpx.AsyncClient = field(init=False)

    async def call(self, method: str, path: str, body: Any = None, *, expect: int = 200, **query: Any) -> Any:
        """A request's JSON; fails on any other status than `expect`."""
        response = await self.http.request(method, "/v1" + path, json=body, params=query)
        assert response.status_code == expect, (response.status_code, response.text)
        return response.json()

    async def refused(self, method: str, path: str, body: Any = None, *, status: int, **query: Any) -> Any:
        """The error a request is answered with."""
        error = (await self.call(method, path, body, expect=status, **query))["error"]
        assert set(error) == {"code", "message", "hint", "details"}
        assert "\n" not in error["message"]
        assert "Traceback" not in error["message"]
        return error


def build(directory: Path) -> Api:
    store = MemoryStore()
    repo = Repo(store)
    live, metering, images = FakeLive(directory), FakeMetering(), FakeImages(repo)
    deps = ApiDeps(
        store=store,
        repo=repo,
        paths=Paths(directory / "state", directory / "run"),
        clock=SystemClock(),
        live=live,
        metering=metering,
        images=images,
        doctor=doctor,
        host="h1",
        version="0.1.0",
        mode="session",
        started_at=1.0,
    )
    return Api(create_app(deps), store, repo, live, metering, images, deps)


async def seed(api: Api) -> None:
    """A host, two images, and an instance `off` that is stopped."""
    await api.repo.put_host(HOST)
    await api.repo.put_image(TINY)
    await api.repo.put_image(DEBIAN)
    await api.repo.create_instance(record("off"))
    stopped = InstanceStatus(state=State.STOPPED, generation=1, created=True)
    await api.repo.put_status("off", UID, stopped)


@contextlib.asynccontextmanager
async def serve(directory: Path) -> AsyncIterator[Api]:
    """The application with its index, a settler as agent, and an HTTP client."""
    api = build(directory)
    await seed(api)
    transport = httpx.ASGITransport(app=api.app, raise_app_exceptions=True)
    async with (
        serving(api.app),
        Settler(api.store) as api.settler,
        httpx.AsyncClient(transport=transport, base_url="http://inn") as api.http,
    ):
        yield api
    await api.store.close()
