"""The fork recipe driven by hand: QEMU, a memory file, a device-state file, nothing else around it.

From the argument list of `inn show --argv`, so that the devices are the same; networks are left out,
since a hand-driven copy would need a passt of its own.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.lib.byhand import ask_agent
from bench.lib.lab import end_process

DEADLINE_S = 60.0
_SKIP = {"-kernel", "-initrd", "-append"}


class HandFork:
    """Boot a parent once, freeze it, then start copies of that moment and time each."""

    def __init__(self, argv: Sequence[str], directory: Path) -> None:
        self._argv, self._directory = _without_network(argv), directory
        self._children: list[subprocess.Popen[bytes]] = []
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        memory = next(json.loads(word) for word in argv if '"ram0"' in word and word.startswith("{"))
        self._size = int(memory["size"])
        self._ram = os.memfd_create("bench-ram")
        os.ftruncate(self._ram, self._size)

    def freeze(self) -> float:
        """Boot the parent until its agent answers, then halt it and write its state: milliseconds."""
        files = self._start("parent", share=True, incoming=False)
        _until_agent(files / "agent.sock")
        with _Qmp(files / "qmp.sock") as qmp:
            begun = time.perf_counter()
            qmp("stop")
            self._state = os.open(self._directory / "state", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            qmp.migrate("migrate", self._state)
            return (time.perf_counter() - begun) * 1000

    def copy(self) -> float:
        """Start one copy; milliseconds until its agent has answered."""
        begun = time.perf_counter()
        files = self._start(f"copy{len(self._children)}", share=False, incoming=True)
        with _Qmp(files / "qmp.sock") as qmp:
            state = os.open(self._directory / "state", os.O_RDONLY)
            qmp.migrate("migrate-incoming", state)
            os.close(state)
            qmp("cont")
        ask_agent(files / "agent.sock", "guest-ping")
        took = (time.perf_counter() - begun) * 1000
        end_process(self._children.pop())
        return took

    def _start(self, name: str, *, share: bool, incoming: bool) -> Path:
        files = self._directory / name
        files.mkdir(exist_ok=True)
        argv: list[str] = []
        words = iter(self._argv)
        for word in words:
            if incoming and word in _SKIP:
                next(words)
            elif '"ram0"' in word:
                path = f"/proc/self/fd/{self._ram}"
                argv.append(json.dumps({
                    "qom-type": "memory-backend-file", "id": "ram0", "size": self._size,
                    "mem-path": path, "share": share,
                }))  # fmt: skip
            else:
                argv.append(_moved(word, files))
        if incoming:
            argv[argv.index("-accel") + 1] += ",tb-size=16"
            argv += ["-incoming", "defer"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._children.append(subprocess.Popen(argv, pass_fds=[self._ram], **quiet))  # type: ignore[call-overload]
        return files

    def end(self) -> None:
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                end_process(child)
        os.close(self._ram)
        shutil.rmtree(self._directory, ignore_errors=True)


def _without_network(argv: Sequence[str]) -> list[str]:
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "-netdev":
            next(words)
        elif word == "-device":
            device = next(words)
            if '"netdev"' not in device:
                kept += [word, device]
        else:
            kept.append(word)
    return kept


def _moved(word: str, files: Path) -> str:
    """The same word with its sockets and log in `files`."""
    for name in ("qmp.sock", "console.sock", "agent.sock", "console.log"):
        if name in word and "path=" in word:
            head, _, tail = word.partition("path=")
            _, comma, rest = tail.partition(",")
            word = f"{head}path={files / name}{comma}{rest}"
        if name == "console.log" and "logfile=" in word:
            head, _, tail = word.partition("logfile=")
            _, comma, rest = tail.partition(",")
            word = f"{head}logfile={files / name}{comma}{rest}"
    return word


def _until_agent(path: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(2.0)
            channel.connect(str(path))
            channel.sendall(b'{"execute":"guest-sync","arguments":{"id":7}}\n')
            if b'"return": 7' in channel.recv(4096):
                return
        time.sleep(0.05)
    raise RuntimeError("the guest's agent does not answer")


class _Qmp:
    def __init__(self, path: Path) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.0005)
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self("qmp_capabilities")

    def __enter__(self) -> _Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def __call__(self, command: str, fd: int | None = None, /, **arguments: Any) -> Any:
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        if fd is None:
            self._socket.sendall(line)
        else:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            self._socket.sendmsg([line], rights)
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def migrate(self, command: str, fd: int) -> None:
        self("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
        self("getfd", fd, fdname="state")
        self(command, uri="fd:state")
        while self("query-migrate").get("status") not in ("completed", "failed"):
            time.sleep(0.0005)
