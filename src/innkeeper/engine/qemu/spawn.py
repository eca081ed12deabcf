"""Start one QEMU process with what it needs around it: runtime directory, RAM, helpers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Sequence

from innkeeper.drivers.cgroup import Cgroups
from innkeeper.drivers.inherit import given
from innkeeper.drivers.network import user
from innkeeper.drivers.run import Owner, Runner
from innkeeper.engine import plan_file
from innkeeper.engine.base import LaunchPlan
from innkeeper.engine.memory import Ram
from innkeeper.engine.qemu.affinity import hold_process, hold_vcpus
from innkeeper.engine.qemu.argv import build_argv
from innkeeper.engine.qemu.launch_record import LaunchRecord
from innkeeper.engine.qemu.links import Link
from innkeeper.engine.qemu.machine import QemuMachine
from innkeeper.engine.qemu.process import Process
from innkeeper.engine.qemu.qmp import CONNECT_DEADLINE_S, Monitor
from innkeeper.engine.qemu.wiring import Descriptors
from innkeeper.errors import EngineError, Failed, StartFailed
from innkeeper.paths import RuntimeFiles
from innkeeper.telemetry.tail import last_lines

log = logging.getLogger("innkeeper.engine")


async def spawn(
    runner: Runner,
    plan: LaunchPlan,
    files: RuntimeFiles,
    owner: Owner | None,
    *,
    ram: Ram,
    now: float,
    cgroups: Cgroups,
    links: Sequence[Link] | None = None,
) -> QemuMachine:
    """A QEMU whose monitor answers. It owns `ram` from then on, and duplicates of `links`, if it is to
    take over those of another; else each NIC gets a passt of its own.

    On failure nothing is left, and StartFailed has QEMU's own words.
    """
    begun = time.perf_counter()
    try:
        _make_runtime_dir(files, plan, owner)
        machine, helpers = _start(runner, plan, files, owner, ram, now, links)
    except BaseException:
        ram.close()
        remove_runtime_dir(files)
        raise
    spawned = time.perf_counter()
    try:
        try:
            await asyncio.gather(
                _into_group(cgroups, plan, [machine.pid, *(helper.pid for helper in helpers)]),
                machine.connect(CONNECT_DEADLINE_S),
            )
            await hold_vcpus(await machine.answering(), plan)
        except EngineError as error:
            raise await _why_it_died(machine, plan, error) from error
        if any(helper.ended.is_set() for helper in helpers):
            raise StartFailed(f"passt ended at start: {last_lines(plan.qemu_log, 2)}")
    except BaseException:
        await machine.kill()
        await machine.detach()
        remove_runtime_dir(files)
        raise
    machine.times_ms = {
        "spawn": round((spawned - begun) * 1000, 1),
        "monitor": round((time.perf_counter() - spawned) * 1000, 1),
    }
    return machine


def _start(
    runner: Runner,
    plan: LaunchPlan,
    files: RuntimeFiles,
    owner: Owner | None,
    ram: Ram,
    now: float,
    links: Sequence[Link] | None,
) -> tuple[QemuMachine, list[Process]]:
    helpers: list[Process] = []
    own_links: list[Link] = []
    with (
        contextlib.ExitStack() as undo,
        Descriptors(ram) as wiring,
        open(plan.qemu_log, "ab", buffering=0, opener=_private) as log,
    ):
        for index, nic in enumerate(plan.nics):
            if nic.backend != "passt":
                continue
            if links:
                link = links[len(own_links)]
                wiring.network_end(index, os.dup(link.fd))
                own_links.append(Link(os.dup(link.fd), link.passt_pid))
                undo.callback(own_links[-1].close)
                continue
            ours, theirs = wiring.network_pair(index)
            argv = user.passt_argv(theirs, nic.forwards, owner, host_access=nic.host_access)
            pid = runner.spawn(argv, stdout=log, stderr=log, pass_fds=[theirs])
            helpers.append(Process(pid, child=True))
            own_links.append(Link(os.dup(ours), pid))
            undo.callback(own_links[-1].close)  # with its other end passt ends
        passt_pids = tuple(link.passt_pid for link in own_links)
        record = LaunchRecord(plan.epoch, plan.accelerator, plan.machine, now, plan.ram_private, passt_pids)
        record.write(files.launch)
        plan_file.save(files, plan)
        argv = build_argv(plan, files, wiring)
        with given(lock_memory=plan.memory.locked and not plan.ram_private):
            pid = runner.spawn(
                [argv[0], *wiring.options(), *argv[1:]],
                stdout=log,
                stderr=log,
                pass_fds=wiring.passed,
                owner=owner,
                cwd="/",
                # A private view of a memory file has small pages in any case; what is left for huge ones are
                # the stacks of its threads, of which each touches a few KiB: 6 MiB less of an idle copy.
                huge_pages=plan.memory.thp == "always"
                or (plan.memory.thp == "auto" and not plan.ram_private),
            )
        undo.pop_all()
    hold_process(pid, plan)
    process = Process(pid, child=True)
    return QemuMachine(process, Monitor(plan.name), record, files.qmp, ram=ram, links=own_links), helpers


async def _into_group(cgroups: Cgroups, plan: LaunchPlan, pids: Sequence[int]) -> None:
    """At once, so that little is accounted elsewhere, and beside us, since the kernel may take some 20 ms.
    A VM that has no group runs all the same; its status says what is not in force (agent/qos)."""
    try:
        group = cgroups.create(plan.uid)
        if group.paths:
            await asyncio.to_thread(group.add, pids)
    except Failed as error:
        log.warning("%s: %s", plan.name, error)


def _private(path: str, flags: int) -> int:
    """For our eyes only, like the rest of the instance's files."""
    return os.open(path, flags, 0o600)


def remove_runtime_dir(files: RuntimeFiles) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(files.directory)


def _make_runtime_dir(files: RuntimeFiles, plan: LaunchPlan, owner: Owner | None) -> None:
    """A fresh directory for this run. QEMU itself writes there only when it makes a VNC socket."""
    remove_runtime_dir(files)
    files.directory.mkdir(parents=True, mode=0o700)
    if owner and plan.vnc == "socket":
        os.chown(files.directory, owner.uid, owner.gid)


async def _why_it_died(machine: QemuMachine, plan: LaunchPlan, error: EngineError) -> StartFailed:
    """QEMU's own words, if it left any; they are the last lines of its log."""
    await machine.kill()
    ended = await machine.wait_exit()
    words = last_lines(plan.qemu_log, 3)
    status = f" with status {ended.status}" if ended.status else ""
    return StartFailed(
        f"QEMU ended at start{status}: {words}" if words else f"QEMU did not start: {error.message}",
        hint=f"the whole output is in {plan.qemu_log}",
        details={"log": str(plan.qemu_log)},
    )
