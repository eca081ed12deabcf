"""A run's own directory, daemons and processes; everything it started is ended by pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from innkeeper.client.client import Client, connect
from innkeeper.errors import InnkeeperError

INN = str(Path(sys.executable).parent / "inn")
DAEMON_ANSWER_S = 20.0
# A VM without disks, networks or screen: it stays in the firmware, which finds nothing to boot and halts.
HALTED = {
    "memory": {"size": "32MiB"},
    "boot": {"order": ["network"]},
    "networks": [],
    "display": {"vga": "none"},
}


def environment(**more: str) -> dict[str, str]:
    """Ours, except what would make Python compile every module anew at every start."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, **more}


def run_quiet(argv: Sequence[str], env: Mapping[str, str] | None = None, deadline_s: float = 300) -> None:
    """Run a command to its end; its output only counts when it fails."""
    done = subprocess.run(
        argv,
        env=environment() if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=deadline_s,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{argv[0]}: {done.stderr.decode(errors='replace').strip()[-500:]}")


def end_process(process: subprocess.Popen[bytes], grace_s: float = 10.0) -> None:
    """Politely, then not; only ever a process we started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)


class Daemon:
    """A daemon with a state directory of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.process: subprocess.Popen[bytes] | None = None
        self.client: Client = connect(str(state), autostart=False)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def env(self) -> dict[str, str]:
        return environment(INNKEEPER_STATE=str(self.state))

    def start(self, *, wait: bool = True) -> None:
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.state / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "innkeeper.daemon"],
                env=self.env(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        if wait:
            self.await_answer()

    def await_answer(self) -> None:
        deadline = time.monotonic() + DAEMON_ANSWER_S
        while True:
            try:
                self.client.version()
                return
            except InnkeeperError:
                if time.monotonic() > deadline or (self.process and self.process.poll() is not None):
                    last = (self.state / "daemon.log").read_text(errors="replace")[-500:]
                    raise RuntimeError(f"the daemon does not answer: {last}") from None
            time.sleep(0.002)

    def kill(self) -> None:
        """As a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def inn(self, *args: str) -> None:
        """The installed `inn`, as a user runs it; raises when it fails."""
        run_quiet([INN, *args], self.env())

    def close(self) -> None:
        """Remove every instance, then end the daemon."""
        if self.process is None:
            return
        with contextlib.suppress(InnkeeperError):
            for instance in self.client.instances.list():
                with contextlib.suppress(InnkeeperError):
                    instance.remove(force=True)
        end_process(self.process)


@dataclass
class Lab:
    """What a benchmark gets. `daemon` is shared by all of them and has the tiny image."""

    directory: Path
    daemon: Daemon
    quick: bool = False
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def count(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def need_image(self, name: str) -> None:
        """Build an image of our recipes where it is not there yet."""
        if name not in {image["name"] for image in self.daemon.client.images.list()}:
            self.daemon.client.images.build(name)

    @contextlib.contextmanager
    def own_daemon(self, name: str) -> Iterator[Daemon]:
        """A second daemon with an empty state directory, for what must not have other instances."""
        daemon = Daemon(self.directory / name)
        try:
            daemon.start()
            yield daemon
        finally:
            daemon.close()


@contextlib.contextmanager
def lab(*, quick: bool) -> Iterator[Lab]:
    """A lab in a directory of its own; image and daemon are made when it opens."""
    # Short: unix sockets lie in it. Not private: libvirt's QEMU is another user.
    directory = Path(tempfile.mkdtemp(prefix="innb", dir="/tmp"))
    directory.chmod(0o711)
    _compile_bytecode()
    daemon = Daemon(directory / "s")
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(daemon.close)
            daemon.start()
            print("building the tiny image", file=sys.stderr, flush=True)
            daemon.client.images.build("tiny")
            yield Lab(directory, daemon, quick, stack)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _compile_bytecode() -> None:
    """Installed packages come compiled; a checkout may not be, and must not be measured that way."""
    source = Path(__file__).resolve().parents[2] / "src"
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", str(source)], env=environment(), check=False, timeout=120
    )
