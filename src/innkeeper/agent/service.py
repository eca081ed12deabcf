"""The live seam (agent/live.py) over the VMs of this host."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Literal

from innkeeper.agent import cpus, forkable
from innkeeper.agent.console import ConsoleHub
from innkeeper.agent.context import Context, Running
from innkeeper.agent.inspect import inspector
from innkeeper.agent.live import ConsoleTap, ExecRequest, ExecSession, LogSource
from innkeeper.agent.lookup import plan_of
from innkeeper.agent.ops.qos import report
from innkeeper.errors import AgentMissing, NotFound, WrongState
from innkeeper.guest import exec as guest_exec
from innkeeper.guest import files as guest_files
from innkeeper.inspect.registers import parse_place
from innkeeper.paths import RuntimeFiles
from innkeeper.spec.cpumodel import CpuCatalogue
from innkeeper.spec.finding import Finding
from innkeeper.spec.inspection import (
    AddressReport,
    CpuInspection,
    DiskInspection,
    MemoryMap,
    NetInspection,
)
from innkeeper.spec.instance import State
from innkeeper.spec.qos import QosReport


class LiveService:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._hubs: dict[str, ConsoleHub] = {}  # by uid
        ctx.on_stand_in = self._follow

    async def console(self, name: str) -> ConsoleTap:
        running = self._running(name)
        uid = running.uid
        hub = self._hubs.get(uid)
        if hub is None:
            files = self._ctx.paths.runtime(uid)
            log = self._ctx.paths.instance(uid).console_log
            hub = self._hubs[uid] = ConsoleHub(files.console, log, lambda: self._forget_hub(uid))
        return await hub.join()

    async def _follow(self, uid: str, files: RuntimeFiles) -> None:
        hub = self._hubs.get(uid)
        if hub is not None:
            await hub.follow(files.console)

    def _forget_hub(self, uid: str) -> None:
        self._hubs.pop(uid, None)

    async def exec(self, name: str, request: ExecRequest) -> ExecSession:
        wanted = guest_exec.ExecRequest(request.argv, request.env, request.stdin)
        return _Exec(await guest_exec.open_exec(self._with_agent(name).agent, wanted))

    async def read_file(self, name: str, path: str) -> AsyncIterator[bytes]:
        return await _primed(guest_files.read_file(self._with_agent(name).agent, path))

    async def write_file(
        self, name: str, path: str, chunks: AsyncIterator[bytes], *, mode: int | None = None
    ) -> int:
        agent = self._with_agent(name).agent
        return await guest_files.write_file(agent, path, chunks, 0o644 if mode is None else mode)

    async def screenshot(self, name: str) -> bytes:
        return await self._running(name).machine.screenshot()

    def logs(self, name: str, source: LogSource) -> Path:
        uid = self._uid(name)
        files = self._ctx.paths.instance(uid)
        return files.console_log if source == "console" else files.qemu_log

    async def argv(self, name: str) -> list[str]:
        record = (await self._ctx.repo.instance(name)).value
        plan = plan_of(self._ctx, record)
        return self._ctx.engine.command_line(plan, self._ctx.paths.runtime(record.uid))

    def qos(self, name: str) -> QosReport:
        record = self._ctx.records.get(name)
        if record is None:
            raise NotFound(f"No instance is named {name} on this host", hint="see inn list")
        return report(self._ctx, record)

    async def cpu_models(self, accelerator: Literal["kvm", "tcg"] | None = None) -> CpuCatalogue:
        return await cpus.catalogue(self._ctx, accelerator)

    async def explain_fork(self, name: str, *, copied: bool = False) -> list[Finding]:
        record = (await self._ctx.repo.instance(name)).value
        return await forkable.explain(self._ctx, record, copied=copied)

    async def inspect_memory(self, name: str, *, numa: bool = False) -> MemoryMap:
        return await inspector.memory(self._ctx, name, self._with_state(name), numa=numa)

    async def inspect_address(
        self, name: str, address: str, *, physical: bool = False, cpu: int = 0
    ) -> AddressReport:
        place = parse_place(address, physical=physical)
        return await inspector.address(name, self._with_state(name), place, cpu, address)

    async def inspect_cpu(self, name: str) -> CpuInspection:
        running = self._with_state(name)
        return await inspector.cpu(name, running, paused=self._state(running) is State.PAUSED)

    async def inspect_disk(self, name: str) -> DiskInspection:
        return await inspector.disk(self._ctx, name, self._running(name))

    async def inspect_net(self, name: str) -> NetInspection:
        running = self._running(name)
        why = ""
        if self._state(running) is State.PAUSED:
            why = "the guest is paused: its agent cannot answer"
        elif not running.machine.agent_open:
            why = "no guest agent answers: no view from inside"
        return await inspector.net(name, running, why_no_agent=why)

    def _state(self, running: Running) -> State:
        return self._ctx.statuses[running.uid].state

    def _uid(self, name: str) -> str:
        record = self._ctx.records.get(name)
        if record is None:
            raise NotFound(f"No instance named {name} on this host", hint="see what there is: inn list")
        return record.uid

    def _running(self, name: str) -> Running:
        running = self._ctx.running.get(self._uid(name))
        if running is None:
            raise WrongState(f"{name} is not running", hint=f"start it: inn start {name}")
        return running

    def _with_state(self, name: str) -> Running:
        """A template's state is loaded by no process: QEMU would show that of a machine just made."""
        running = self._running(name)
        if self._ctx.statuses[running.uid].template:
            raise WrongState(
                f"{name} is a template: its memory and CPUs lie in files until it runs on",
                hint=f"look into a copy (inn fork {name}), or let it run on: inn resume {name}",
            )
        return running

    def _with_agent(self, name: str) -> Running:
        running = self._running(name)
        if self._state(running) is State.PAUSED:
            raise WrongState(f"{name} is paused", hint=f"let it run: inn resume {name}")
        if not running.machine.agent_open:
            raise AgentMissing(
                f"No guest agent answers in {name}",
                hint="install qemu-guest-agent in the guest, or wait until it has booted "
                f"(inn wait {name}); the serial console works without: inn console {name}",
            )
        return running


class _Exec:
    """A guest command behind the seam's protocol."""

    def __init__(self, session: guest_exec.ExecSession) -> None:
        self._session = session
        self.write = session.write
        self.close_stdin = session.close_stdin
        self.wait = session.wait
        self.cancel = session.cancel

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        return aiter(self._session)


async def _primed(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same stream, its first piece already fetched: errors of opening come from here."""
    try:
        first = [await anext(chunks)]
    except StopAsyncIteration:
        first = []

    async def stream() -> AsyncIterator[bytes]:
        try:
            for chunk in first:
                yield chunk
            async for chunk in chunks:
                yield chunk
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    return stream()
