"""QEMU behind the Engine seam: launch, adopt, find, destroy."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from typing import Final

from innkeeper.clock import Clock
from innkeeper.drivers.cgroup import Cgroups
from innkeeper.drivers.network import user
from innkeeper.drivers.run import Owner, Runner
from innkeeper.engine.base import LaunchPlan, Machine, Moment
from innkeeper.engine.memory import Ram
from innkeeper.engine.qemu import ram
from innkeeper.engine.qemu.argv import ByPath, build_argv
from innkeeper.engine.qemu.handover import survivor
from innkeeper.engine.qemu.launch_record import LaunchRecord
from innkeeper.engine.qemu.links import Link, links_of
from innkeeper.engine.qemu.machine import QemuMachine
from innkeeper.engine.qemu.process import Process, scan
from innkeeper.engine.qemu.qmp import Monitor
from innkeeper.engine.qemu.spawn import spawn
from innkeeper.errors import EngineError
from innkeeper.paths import RuntimeFiles

# A live QEMU answers in milliseconds; a daemon that starts must not wait long for one that hangs.
ADOPT_DEADLINE_S: Final = 0.7


class QemuEngine:
    def __init__(self, runner: Runner, clock: Clock, cgroups: Cgroups | None = None) -> None:
        """Every process of a VM is moved into the VM's group; removing that is up to who ends the VM."""
        self._runner = runner
        self._clock = clock
        self._cgroups = cgroups or Cgroups()

    async def launch(
        self, plan: LaunchPlan, files: RuntimeFiles, owner: Owner | None, moment: Moment | None = None
    ) -> Machine:
        user.check_ports_free([forward for nic in plan.nics for forward in nic.forwards])
        closed = [nic for nic in plan.nics if nic.backend == "passt" and not nic.host_access]
        await user.check_udp_answers(self._runner, [forward for nic in closed for forward in nic.forwards])
        memory = moment.ram.dup() if moment else ram.create(plan)
        return await self._spawn(plan, files, owner, memory)

    async def _spawn(
        self,
        plan: LaunchPlan,
        files: RuntimeFiles,
        owner: Owner | None,
        memory: Ram,
        links: Sequence[Link] | None = None,
    ) -> QemuMachine:
        return await spawn(
            self._runner,
            plan,
            files,
            owner,
            ram=memory,
            now=self._clock.time(),
            links=links,
            cgroups=self._cgroups,
        )

    async def stand_in(
        self, old: Machine, plan: LaunchPlan, files: RuntimeFiles, owner: Owner | None
    ) -> Machine:
        """The network connections are held from before it starts until one of the two has been given up:
        both would read, and tear the frames apart."""
        assert isinstance(old, QemuMachine)
        await old.hold_links()
        memory = old.ram.dup() if plan.ram_private else ram.create(plan)
        return await self._spawn(plan, files, owner, memory, old.links)

    def find_running(self) -> dict[str, list[int]]:
        return scan()

    def listens(self, files: RuntimeFiles) -> bool:
        """Each process has a monitor that listens from before its start to its end, even if it hangs."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(files.qmp))
            except BlockingIOError:  # others wait to be let in
                return True
            except OSError:
                return False
        return True

    async def adopt(
        self, uid: str, pid: int, files: RuntimeFiles, stand_in: tuple[int, RuntimeFiles] | None = None
    ) -> Machine:
        machine = await self._reach(uid, pid, files)
        if stand_in is not None:
            machine = await survivor(machine, await self._reach(uid, *stand_in))
        # They may be held by a daemon that was killed in the middle of a fork.
        machine.release_links()
        return machine

    async def _reach(self, uid: str, pid: int, files: RuntimeFiles) -> QemuMachine:
        record = LaunchRecord.read(files.launch)
        links = links_of(pid, record.passt_pids)
        machine = QemuMachine(
            Process(pid, child=False), Monitor(uid), record, files.qmp, ram=None, links=links
        )
        with contextlib.suppress(EngineError):
            await machine.connect(ADOPT_DEADLINE_S)
        return machine

    async def destroy_stray(self, pid: int) -> None:
        await Process(pid, child=False).end()

    def command_line(self, plan: LaunchPlan, files: RuntimeFiles) -> list[str]:
        return build_argv(plan, files, ByPath(plan.memory.page_bytes))
