"""A real daemon as a subprocess, with a state directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from innkeeper.client.client import Client, connect
from innkeeper.errors import InnkeeperError
from innkeeper.paths import Paths, default_paths
from vms import traces
from vms.cli import Inn, User
from vms.waiting import eventually

ANSWER_WITHIN_S = 15.0
LIVING: list[Daemon] = []  # every daemon whose state directory is there


def short_directory(base: str = "/tmp") -> Path:
    """A unix socket's path is limited to 107 bytes, which pytest's own tmp_path would use up."""
    return Path(tempfile.mkdtemp(prefix="inn-", dir=base))


class Daemon:
    """`start` it, kill it, start it again; `close` removes what it has and checks that it left nothing.

    `mark` is in the environment of all its processes, QEMU's and passt's too: what is left of it can
    be found whatever became of its parents.
    """

    def __init__(self, state: Path, *, user: User | None = None, log: Path | None = None) -> None:
        self.state = state
        self.user = user
        self.paths: Paths = default_paths(str(state))
        self.log = log or self.paths.daemon_log
        self.mark = f"INNKEEPER_TEST={state}"
        self.inn = Inn(state, user=user, env=dict([self.mark.split("=", 1)]))
        self.process: subprocess.Popen[bytes] | None = None
        self.errors_expected = False
        self.checked = False  # its tests look for remains themselves (vms.forks), more closely than `ambient`
        self.spoiled = False  # the test damaged it on purpose: `close` checks nothing
        LIVING.append(self)

    # -- its process ----------------------------------------------------------------------------------

    def start(self, *arguments: str, crash_at: str = "", wait: bool = True, **env: str) -> Daemon:
        assert self.process is None
        how = self.inn.how()
        how["env"] |= env | ({"INNKEEPER_CRASH_AT": crash_at} if crash_at else {})
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "innkeeper.daemon", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **how,
            )
        if wait:
            eventually(self._answers, "the daemon answers", ANSWER_WITHIN_S, every_s=0.005)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}: {self.tail()}")
        if not self.paths.api_socket.exists():  # to ask costs more, which slows down who is to answer
            return False
        try:
            self.client.version(timeout_s=5)
        except InnkeeperError:
            return False
        return True

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: the worst that can happen to it."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait_dead()

    def wait_dead(self, timeout_s: float = 20.0) -> int:
        """Until it has ended by itself; its exit status."""
        assert self.process is not None
        status = self.process.wait(timeout_s)
        self.process = None
        return status

    def restart(self) -> float:
        """kill -9 and start again; the seconds from start to an answer."""
        self.kill()
        begun = time.monotonic()
        self.start()
        return time.monotonic() - begun

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def tail(self, size_bytes: int = 3000) -> str:
        return self.log.read_bytes()[-size_bytes:].decode(errors="replace") if self.log.exists() else ""

    # -- what it has ----------------------------------------------------------------------------------

    @property
    def client(self) -> Client:
        return connect(str(self.state), autostart=False)

    def show(self, name: str) -> dict[str, Any]:
        return self.client.instances.get_data(name)

    def names(self) -> list[str]:
        return [one["name"] for one in self.client.instances.list_data()]

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = self.show(name)["status"]
        return status

    def watch(
        self, name: str, reached: Callable[[dict[str, Any]], Any], what: str, deadline_s: float = 20.0
    ) -> dict[str, Any]:
        """The instance once it is so."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [self.show(name)]
            return bool(reached(found[0]))

        eventually(look, f"{name}: {what}", deadline_s, every_s=0.02)
        return found[0]

    def qemu_processes(self) -> list[tuple[str, int]]:
        """(uid, pid) of each QEMU of this daemon and its predecessors."""
        found = [(traces.qemu_uid(pid), pid) for pid in traces.processes(self.mark)]
        return [(uid, pid) for uid, pid in found if uid]

    def qemus(self) -> dict[str, int]:
        """uid -> pid; never two of one, but while a fork hands over from one to the next."""
        return dict(self.qemu_processes())

    def helpers(self) -> list[int]:
        """Its processes that are not the daemon itself."""
        own = self.process.pid if self.process else -1
        return [pid for pid in traces.processes(self.mark) if pid != own]

    # -- the end --------------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove all instances by the API, stop, and see that nothing is left of it."""
        try:
            if not self.spoiled:
                self._leave()
        finally:
            self._wipe()

    def _leave(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            self.process = None
        if self.process is None:
            self.start()
        for name in self.names():
            self.client.instances.handle(name).remove(force=True, snapshots=True)
        status = self.stop()
        assert status == 0, f"the daemon ended with {status}: {self.tail()}"
        eventually(lambda: not traces.processes(self.mark), "all its processes are gone", 5.0)
        assert traces.leftovers(self.paths) == []
        assert traces.control_groups(self.paths.state) == []
        if not self.errors_expected:
            assert traces.complaints(self.log) == []

    def _wipe(self) -> None:
        for pid in traces.processes(self.mark):
            traces.kill(pid)
        if self.process is not None:
            self.process.wait(10)
            self.process = None
        LIVING.remove(self)
        shutil.rmtree(self.state, ignore_errors=True)


@contextmanager
def stopped_process(pid: int) -> Iterator[None]:
    """A process that stands still, as one that hangs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        traces.signal_if_there(pid, signal.SIGCONT)
