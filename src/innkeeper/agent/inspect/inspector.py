"""The kinds of inspection, one function each, with what can go wrong in words for people."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Final

from innkeeper.agent.context import Context, Running
from innkeeper.agent.inspect import address as one_address
from innkeeper.agent.inspect import cpu as one_cpu
from innkeeper.agent.inspect import disk as disks
from innkeeper.agent.inspect import memory as whole_memory
from innkeeper.agent.inspect import net as cards
from innkeeper.engine.base import Machine
from innkeeper.errors import EngineError, Unsupported, WrongState
from innkeeper.inspect.registers import Place
from innkeeper.spec.inspection import (
    AddressReport,
    CpuInspection,
    DiskInspection,
    MemoryMap,
    NetInspection,
)

# A fork hands a VM over in some 0.1 s, and moves its RAM in some seconds.
HAND_OVER_S: Final = 5.0


async def memory(ctx: Context, name: str, running: Running, *, numa: bool) -> MemoryMap:
    with _explained(name):
        begun = time.monotonic()
        machine = await _machine(name, running)
        answers = await whole_memory.ask(await machine.inspection())
        others = {
            other: ctx.running[record.uid].machine.pid
            for other, record in ctx.records.items()
            if other != name and record.uid in ctx.running
        }
        # Some milliseconds for each GiB, in which the daemon serves others.
        return await asyncio.to_thread(
            whole_memory.look, name, answers, machine.pid, others, numa=numa, begun=begun
        )


async def address(name: str, running: Running, place: Place, cpu: int, asked: str) -> AddressReport:
    with _explained(name):
        machine = await _machine(name, running)
        vm = await machine.inspection()
        return await one_address.inspect_address(
            name, vm, machine.pid, machine.accelerator, place, cpu, asked
        )


async def cpu(name: str, running: Running, *, paused: bool) -> CpuInspection:
    with _explained(name):
        machine = await _machine(name, running)
        vm = await machine.inspection()
        return await one_cpu.inspect_cpu(name, vm, machine.pid, machine.accelerator, paused=paused)


async def disk(ctx: Context, name: str, running: Running) -> DiskInspection:
    with _explained(name):
        machine = await _machine(name, running)
        return await disks.inspect_disk(name, ctx, running, await machine.inspection())


async def net(name: str, running: Running, *, why_no_agent: str) -> NetInspection:
    with _explained(name):
        vm = await (await _machine(name, running)).inspection()
        return await cards.inspect_net(name, running, vm, why_no_agent=why_no_agent)


async def _machine(name: str, running: Running) -> Machine:
    """The process that is the VM: while a fork hands it over there are two."""
    try:
        await asyncio.wait_for(running.at_rest.wait(), HAND_OVER_S)
    except TimeoutError:
        raise WrongState(f"{name} is being handed over to another process", hint="try again") from None
    return running.machine


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise EngineError(
            f"{name} cannot be looked into: {error.message}",
            hint=f"if it hangs it can only be ended: inn kill {name}; its log: inn logs {name} --qemu",
            details=error.details,
        ) from error
    except PermissionError as error:
        raise Unsupported(
            f"This host does not let the daemon look into QEMU's memory: {error.strerror}",
            hint="run the daemon as root, or as the user who owns the VM",
        ) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise WrongState(f"{name} ended just now", hint=f"see inn show {name}") from error
