"""QEMU driven by hand: the same argument list, nothing else around it."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bench.lib.lab import end_process

BOOT_DEADLINE_S = 60.0
# One question waits in the channel until the guest opens it; asked again in case it was flushed.
ASK_AGAIN_S = 0.5


class Hand:
    """One QEMU of `argv` (as `inn show --argv` prints it), and the passt of its NIC if it has one."""

    def __init__(self, argv: Sequence[str], run_directory: Path) -> None:
        self._argv = list(argv)
        self._run = run_directory
        self._children: list[subprocess.Popen[bytes]] = []

    def boot(self) -> float:
        """Start it; milliseconds until the guest's agent has answered."""
        shutil.rmtree(self._run, ignore_errors=True)
        self._run.mkdir(mode=0o700, parents=True)
        begun = time.perf_counter()
        self.start()
        _ask(self._run / "agent.sock", self._children[-1])
        return (time.perf_counter() - begun) * 1000

    def start(self) -> None:
        argv, fds = list(self._argv), []
        ends: list[socket.socket] = []
        for index, word in enumerate(argv):
            if not word.startswith('{"type": "stream"'):
                continue
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            ends += [ours, theirs]
            fds.append(ours.fileno())
            address = {"type": "fd", "str": str(ours.fileno())}
            argv[index] = json.dumps(json.loads(word) | {"addr": address})
            passt = ["passt", "--foreground", "--quiet", "--stderr", "--fd", str(theirs.fileno())]
            self._spawn([*passt, "-t", "none", "-u", "none"], [theirs.fileno()])
        self._spawn(argv, fds)
        for end in ends:
            end.close()

    @property
    def pid(self) -> int:
        return self._children[-1].pid

    def _spawn(self, argv: Sequence[str], fds: Sequence[int]) -> None:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=tuple(fds),
        )
        self._children.append(child)

    def end(self) -> None:
        for child in reversed(self._children):
            with contextlib.suppress(ProcessLookupError):
                end_process(child)
        self._children.clear()
        shutil.rmtree(self._run, ignore_errors=True)

    def run_directory(self) -> Path:
        return self._run


def _ask(path: Path, qemu: subprocess.Popen[bytes]) -> None:
    """guest-sync until it is answered (QEMU guest agent protocol)."""
    deadline = time.monotonic() + BOOT_DEADLINE_S
    with _connected(path, qemu, deadline) as channel:
        channel.settimeout(ASK_AGAIN_S)
        said = b""
        while b'"return": 4711' not in said:
            if time.monotonic() > deadline:
                raise RuntimeError("the guest's agent does not answer")
            channel.sendall(b'{"execute":"guest-sync","arguments":{"id":4711}}\n')
            with contextlib.suppress(TimeoutError):
                while b"\n" not in said:
                    said += channel.recv(4096)


def _connected(path: Path, qemu: subprocess.Popen[bytes], deadline: float) -> socket.socket:
    while True:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            channel.connect(str(path))
            return channel
        except OSError:
            channel.close()
            if qemu.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"QEMU by hand ended with status {qemu.returncode}") from None
        time.sleep(0.001)


def ask_agent(path: Path, command: str, /, **arguments: object) -> object:
    """One command to the agent of a guest that is up."""
    mark = random.randrange(1 << 30)
    sync = {"execute": "guest-sync", "arguments": {"id": mark}}
    request = {"execute": command, "arguments": arguments}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(BOOT_DEADLINE_S)
        channel.connect(str(path))
        channel.sendall(f"{json.dumps(sync)}\n{json.dumps(request)}\n".encode())
        with channel.makefile("rb") as lines:
            # Answers to somebody's earlier questions come first.
            while json.loads(lines.readline()).get("return") != mark:
                pass
            answer = json.loads(lines.readline())
    if "return" not in answer:
        raise RuntimeError(f"the guest's agent refused {command}: {answer}")
    return answer["return"]


def exec_by_hand(path: Path, argv: Sequence[str]) -> str:
    """Run a command in the guest through its agent; what it wrote to stdout and stderr."""
    import base64

    started = ask_agent(
        path, "guest-exec", **{"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
    )
    assert isinstance(started, dict)
    while True:
        status = ask_agent(path, "guest-exec-status", pid=started["pid"])
        assert isinstance(status, dict)
        if status["exited"]:
            parts = (base64.b64decode(status.get(name, "")) for name in ("out-data", "err-data"))
            return b"".join(parts).decode(errors="replace")
        time.sleep(0.02)
