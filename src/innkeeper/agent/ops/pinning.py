"""Which CPUs of the host the threads of a VM run on (sched_setaffinity(2))."""

from __future__ import annotations

import os
from collections.abc import Iterable

from innkeeper.agent.context import Context, Running
from innkeeper.engine.base import Machine, ThreadIds
from innkeeper.errors import Failed, Unsupported
from innkeeper.spec.cpu import Cpu, cpu_set
from innkeeper.spec.instance import InstanceRecord

Cpus = frozenset[int]


def affinities(cpu: Cpu, threads: ThreadIds, others: Iterable[int], every: Cpus) -> dict[int, Cpus]:
    """The CPUs of each thread, by its id; `others` are all of QEMU's, `every` CPU is one that may be used. A
    new thread has those of the one that made it, so what is not pinned is given all of them."""
    emulator = cpu_set(cpu.emulator) if cpu.emulator else every
    iothreads = cpu_set(cpu.iothreads) if cpu.iothreads else emulator
    found = dict.fromkeys(others, emulator) | dict.fromkeys(threads.iothreads.values(), iothreads)
    for number, thread in enumerate(threads.vcpus):
        found[thread] = cpu_set(cpu.pin[number]) if number in cpu.pin else every
    return found


def refuse_absent(cpu: Cpu, every: Iterable[int]) -> None:
    """Raises Unsupported for CPUs that this host lacks, or that the daemon may not use."""
    absent = sorted(cpu.host_cpus - set(every))
    if absent:
        raise Unsupported(
            f"It is pinned to CPU {', '.join(map(str, absent[:8]))}, which this host does not have",
            hint="change cpu.pin, cpu.emulator or cpu.iothreads; see inn host show",
        )


async def pin(record: InstanceRecord, machine: Machine) -> None:
    """Of a process that has just become the VM; nothing to do where nothing is pinned."""
    if record.spec.cpu.is_pinned:
        await _pin(record, machine)


async def fit_pins(ctx: Context, record: InstanceRecord, running: Running) -> None:
    """Of a running VM, whatever it was pinned to before."""
    await _pin(record, running.machine)


async def _pin(record: InstanceRecord, machine: Machine) -> None:
    every = frozenset(os.sched_getaffinity(0))
    refuse_absent(record.spec.cpu, every)
    threads = await machine.thread_ids()
    for thread, cpus in affinities(record.spec.cpu, threads, _all_threads(machine.pid), every).items():
        try:
            os.sched_setaffinity(thread, cpus)
        except ProcessLookupError:
            continue  # a worker thread that has ended meanwhile
        except OSError as error:
            raise Failed(
                f"A thread of {record.name} cannot be put on CPU {', '.join(map(str, sorted(cpus)))}: "
                f"{error.strerror}",
                hint="is that CPU online, and in the daemon's cpuset?",
            ) from error


def _all_threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return []  # it has ended, which is told elsewhere
