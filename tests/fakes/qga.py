"""A QEMU guest agent on a real unix socket that really runs commands and opens files on this host.

A faithful subset of QEMU 7.2's: one client at a time; the parser's state and the answers in flight
outlive a client, as on a virtio-serial port; 0xFF resets the parser; commands one after the other;
stdio's buffering of file writes; guest-exec tells output at the end. Faults are for tests to set.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KNOWN = [
    "guest-ping",
    "guest-info",
    "guest-shutdown",
    "guest-network-get-interfaces",
    "guest-get-host-name",
    "guest-get-osinfo",
    "guest-set-time",
    "guest-fsfreeze-status",
    "guest-fsfreeze-freeze",
    "guest-fsfreeze-thaw",
    "guest-exec",
    "guest-exec-status",
    "guest-file-open",
    "guest-file-read",
    "guest-file-write",
    "guest-file-flush",
    "guest-file-close",
]

INTERFACES = [
    {
        "name": "lo",
        "hardware-address": "00:00:00:00:00:00",
        "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "127.0.0.1", "prefix": 8}],
    },
    {"name": "eth1", "hardware-address": "52:54:00:00:00:02"},
    {
        "name": "eth0",
        "hardware-address": "52:54:00:00:00:01",
        "ip-addresses": [
            {"ip-address-type": "ipv4", "ip-address": "10.0.2.15", "prefix": 24},
            {"ip-address-type": "ipv6", "ip-address": "fe80::1", "prefix": 64},
        ],
    },
]


class Silence:
    """As a fault: the command is carried out, its answer lost."""


class HangUp:
    """As a fault: the connection ends instead of an answer."""


@dataclass
class _Child:
    process: asyncio.subprocess.Process
    work: asyncio.Future[tuple[bytes, bytes]]


@dataclass
class _Handle:
    fd: int
    unwritten: bytearray = field(default_factory=bytearray)


class GuestError(Exception):
    """Answered as a GenericError."""


class FakeQga:
    """`async with FakeQga(path) as fake:`; then connect to `path`."""

    def __init__(self, socket_path: Path, *, programs: dict[str, str] | None = None) -> None:
        self.socket_path = socket_path
        self.programs = programs
        """What guest-exec can find, by name; None: whatever this host has."""
        self.disabled: set[str] = set()
        self.stale = b""
        """Sent to the next client before anything else."""
        self.faults: defaultdict[str, deque[bytes | type]] = defaultdict(deque)
        """By command: raw bytes to answer, Silence or HangUp, one for each time."""
        self.delays_s: dict[str, float] = {}
        self.calls: list[str] = []
        self.scripts: list[str] = []
        """What guest-exec was given to run, as one text each."""
        self.set_times: list[object] = []
        self.frozen = False
        self._buffer = bytearray()
        self._handles: dict[int, _Handle] = {}
        self._children: dict[int, _Child] = {}
        self._next_handle = 1000
        self._one_client = asyncio.Lock()
        self._connections: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> FakeQga:
        self._server = await asyncio.start_unix_server(self._serve, self.socket_path, limit=1 << 28)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        await self._server.wait_closed()
        await self.forget_children()
        for handle in self._handles.values():
            os.close(handle.fd)

    async def forget_children(self) -> None:
        """End and forget commands nobody asks for any more."""
        for child in self._children.values():
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    kill(child.process.pid, signal.SIGKILL)
            await child.work
        self._children.clear()

    @property
    def open_handles(self) -> int:
        return len(self._handles)

    @property
    def known_children(self) -> int:
        return len(self._children)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            async with self._one_client:
                stale, self.stale = self.stale, b""
                writer.write(stale)
                while data := await reader.read(1 << 18):
                    await self._take(data, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _take(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        self._buffer += data
        while True:
            if (mark := self._buffer.rfind(b"\xff")) >= 0:
                del self._buffer[: mark + 1]
                writer.write(b'{"error": {"class": "GenericError", "desc": "JSON parse error, stray"}}\n')
            end = self._buffer.find(b"\n")
            if end < 0:
                return
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            await self._answer(json.loads(line), writer)

    async def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        command, arguments = request["execute"], request.get("arguments", {})
        self.calls.append(command)
        await asyncio.sleep(self.delays_s.get(command, 0))
        fault = self.faults[command].popleft() if self.faults[command] else None
        if isinstance(fault, bytes):
            writer.write(fault)
        elif fault is HangUp:
            writer.transport.abort()
        else:
            answer = await self._dispatch(command, arguments)
            if answer is not None and fault is not Silence:
                mark = b"\xff" if command == "guest-sync-delimited" else b""
                writer.write(mark + json.dumps(answer).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    async def _dispatch(self, command: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
        if command in ("guest-sync", "guest-sync-delimited"):
            return {"return": arguments["id"]}
        if command == "guest-shutdown":
            return None
        if command in self.disabled:
            return _error("CommandNotFound", f"Command {command} has been disabled")
        if command not in KNOWN:
            return _error("CommandNotFound", f"The command {command} has not been found")
        method: Callable[..., Any] = getattr(self, "_" + command.removeprefix("guest-").replace("-", "_"))
        try:
            result = method(**{key.replace("-", "_"): value for key, value in arguments.items()})
            return {"return": await result if asyncio.iscoroutine(result) else result}
        except GuestError as error:
            return _error("GenericError", str(error))

    # -- simple commands ---------------------------------------------------------------------------

    def _ping(self) -> dict[str, Any]:
        return {}

    def _info(self) -> dict[str, Any]:
        commands = [{"name": one, "enabled": one not in self.disabled} for one in KNOWN]
        return {"version": "7.2.22", "supported_commands": commands}

    def _network_get_interfaces(self) -> list[Any]:
        return INTERFACES

    def _get_host_name(self) -> dict[str, str]:
        return {"host-name": "fake"}

    def _get_osinfo(self) -> dict[str, str]:
        return {
            "id": "debian",
            "pretty-name": "Debian \x1b[31m12",
            "kernel-release": "6.1",
            "machine": "x86_64",
        }

    def _set_time(self, time: int | None = None) -> dict[str, Any]:
        self.set_times.append(time)
        return {}

    def _fsfreeze_status(self) -> str:
        return "frozen" if self.frozen else "thawed"

    def _fsfreeze_freeze(self) -> int:
        self.frozen = True
        return 2

    def _fsfreeze_thaw(self) -> int:
        self.frozen = False
        return 2

    # -- commands in the guest ---------------------------------------------------------------------

    async def _exec(
        self,
        path: str,
        arg: list[str] | None = None,
        env: list[str] | None = None,
        input_data: str | None = None,
        capture_output: bool = False,
    ) -> dict[str, int]:
        self.scripts.append(" ".join([path, *(arg or ())]))
        program = shutil.which(path) if self.programs is None else self.programs.get(path)
        if program is None:
            reason = f"Failed to execute child process \u201c{path}\u201d (No such file or directory)"
            raise GuestError(f"Guest agent command failed, error was '{reason}'")
        output = asyncio.subprocess.PIPE if capture_output else asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            program,
            *(arg or ()),
            stdin=asyncio.subprocess.DEVNULL if input_data is None else asyncio.subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=None if env is None else dict(one.split("=", 1) for one in env),
            cwd=self.socket_path.parent,
        )
        given = None if input_data is None else base64.b64decode(input_data)
        self._children[process.pid] = _Child(process, asyncio.ensure_future(process.communicate(given)))
        return {"pid": process.pid}

    def _exec_status(self, pid: int) -> dict[str, Any]:
        child = self._children.get(pid)
        if child is None:
            raise GuestError("Invalid parameter 'pid'")
        if not child.work.done():
            return {"exited": False}
        del self._children[pid]
        status = child.process.returncode
        assert status is not None
        answer: dict[str, Any] = {
            "exited": True,
            **({"exitcode": status} if status >= 0 else {"signal": -status}),
        }
        for key, data in zip(("out-data", "err-data"), child.work.result(), strict=True):
            if data:
                answer[key] = base64.b64encode(data).decode()
        return answer

    # -- files -------------------------------------------------------------------------------------

    def _file_open(self, path: str, mode: str = "r") -> int:
        flags = {"r": os.O_RDONLY, "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "r+": os.O_RDWR}[mode]
        try:
            fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise GuestError(f"failed to open file '{path}' (mode: '{mode}'): {error.strerror}") from None
        os.set_blocking(fd, False)
        self._next_handle += 1
        self._handles[self._next_handle] = _Handle(fd)
        return self._next_handle

    def _file_read(self, handle: int, count: int = 4096) -> dict[str, Any]:
        data = bytearray()
        try:
            while len(data) < count and (piece := os.read(self._handle(handle).fd, count - len(data))):
                data += piece
        except OSError as error:  # what was read before an error is lost, as with fread(3)
            raise GuestError(f"failed to read file: {error.strerror}") from None
        encoded = base64.b64encode(data).decode()
        return {"count": len(data), "buf-b64": encoded, "eof": len(data) < count}

    def _file_write(self, handle: int, buf_b64: str) -> dict[str, Any]:
        data = base64.b64decode(buf_b64)
        self._handle(handle).unwritten += data
        return {"count": len(data), "eof": False}

    def _file_flush(self, handle: int) -> dict[str, Any]:
        one = self._handle(handle)
        data, one.unwritten = bytes(one.unwritten), bytearray()
        while data:
            try:
                data = data[os.write(one.fd, data) :]
            except OSError as error:
                raise GuestError(f"failed to flush file: {error.strerror}") from None
        return {}

    def _file_close(self, handle: int) -> dict[str, Any]:
        try:
            return self._file_flush(handle)
        finally:
            os.close(self._handles.pop(handle).fd)

    def _handle(self, handle: int) -> _Handle:
        if handle not in self._handles:
            raise GuestError(f"handle '{handle}' has not been found")
        return self._handles[handle]


def _error(kind: str, text: str) -> dict[str, Any]:
    return {"error": {"class": kind, "desc": text}}
