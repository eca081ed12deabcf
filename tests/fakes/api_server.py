"""A daemon's API with canned answers, on a unix socket in threads of the test's process.

Answers are given per method and path: JSON, an error, raw bytes, or a function of the request. It can
also misbehave: send what is no HTTP, break off, or say nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from websockets.frames import Frame, Opcode
from websockets.http11 import Request as HandshakeRequest
from websockets.protocol import State
from websockets.server import ServerProtocol

from innkeeper.errors import InnkeeperError
from innkeeper.paths import Paths, default_paths


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Raw:
    """Bytes for the wire as they are; then the connection is closed, or held open without a word."""

    data: bytes
    hold: bool = False


@dataclass
class Body:
    data: bytes
    kind: str = "text/plain"
    chunked: bool = False


Answer = Any  # JSON, InnkeeperError, Body, Raw, or a function from Request to one of these
Socket = Callable[["FakeSocket"], None]


class FakeSocket:
    """The server's end of a websocket."""

    def __init__(self, connection: socket.socket, protocol: ServerProtocol) -> None:
        self._connection = connection
        self._protocol = protocol
        self._messages: list[bytes | str] = []

    def send(self, message: bytes | str) -> None:
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._flush()

    def say(self, value: Any) -> None:
        self.send(json.dumps(value))

    def receive(self) -> bytes | str | None:
        """The next message, None when the client has closed."""
        while not self._messages:
            if self._protocol.state is not State.OPEN:
                return None
            self._pump()
        return self._messages.pop(0)

    def close(self, code: int = 1000, reason: str = "") -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
            self._flush()
            while not self._ended() and self._protocol.close_rcvd is None:
                self._pump()

    def _ended(self) -> bool:
        return self._protocol.state is State.CLOSED

    def _pump(self) -> None:
        data = self._connection.recv(65536)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._flush()
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY):
                data = bytes(event.data)
                self._messages.append(data.decode() if event.opcode is Opcode.TEXT else data)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._connection.sendall(data)


@dataclass
class ApiServer:
    paths: Paths
    requests: list[Request] = field(default_factory=list)
    _routes: list[tuple[str, re.Pattern[str], Answer]] = field(default_factory=list)
    _sockets: list[tuple[re.Pattern[str], Socket]] = field(default_factory=list)
    _listener: socket.socket | None = None
    _open: set[socket.socket] = field(default_factory=set)

    def answer(self, method: str, path: str, answer: Answer) -> None:
        """`path` is a regular expression; the newest that matches counts."""
        self._routes.insert(0, (method, re.compile(path), answer))

    def on_socket(self, path: str, handler: Socket) -> None:
        self._sockets.insert(0, (re.compile(path), handler))

    def sent(self, method: str, path: str) -> list[Request]:
        """The requests that came for this method and path (exactly)."""
        return [one for one in self.requests if (one.method, one.path) == (method, path)]

    def start(self) -> None:
        self.paths.run.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.paths.api_socket))
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        if self._listener is not None:
            # Wakes the thread that accepts; closing alone would not.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self._open.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            # The client may hang up in the middle: that is its right.
            with connection, contextlib.suppress(OSError, EOFError):
                self._one(connection)
        finally:
            self._open.discard(connection)

    def _one(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        with stream:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = stream.readline()
                if not line:
                    return
                head += line
            request = _parse(head)
            if request.headers.get("upgrade") == "websocket":
                self._socket(connection, head, request)
                return
            request.body = _body(stream, request.headers)
        self.requests.append(request)
        self._reply(connection, self._find(request))

    def _find(self, request: Request) -> Answer:
        for method, pattern, answer in self._routes:
            if method == request.method and pattern.fullmatch(request.path):
                if not callable(answer):
                    return answer
                try:
                    return answer(request)
                except InnkeeperError as error:
                    return error
        return Raw(_response(404, b'{"detail":"Not Found"}', "application/json"))

    def _reply(self, connection: socket.socket, answer: Answer) -> None:
        if isinstance(answer, Raw):
            connection.sendall(answer.data)
            while answer.hold and connection.recv(1024):
                pass
        elif isinstance(answer, InnkeeperError):
            body = json.dumps({"error": answer.to_dict()}).encode()
            connection.sendall(_response(answer.http_status, body, "application/json"))
        elif isinstance(answer, Body) and answer.chunked:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {answer.kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head.encode())
            for start in range(0, len(answer.data), 7):
                part = answer.data[start : start + 7]
                connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            connection.sendall(b"0\r\n\r\n")
        elif isinstance(answer, Body):
            connection.sendall(_response(200, answer.data, answer.kind))
        else:
            connection.sendall(_response(200, json.dumps(answer).encode(), "application/json"))

    def _socket(self, connection: socket.socket, head: bytes, request: Request) -> None:
        self.requests.append(request)
        protocol = ServerProtocol()
        protocol.receive_data(head)
        asked = protocol.events_received()[0]
        assert isinstance(asked, HandshakeRequest)
        for pattern, handler in self._sockets:
            if pattern.fullmatch(request.path):
                protocol.send_response(protocol.accept(asked))
                fake = FakeSocket(connection, protocol)
                fake._flush()
                handler(fake)
                fake.close()
                return
        self._reply(connection, self._find(request))


def _parse(head: bytes) -> Request:
    first, *lines = head.decode().strip().split("\r\n")
    method, target, _ = first.split(" ")
    path, _, query = target.partition("?")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Request(method, unquote(path), dict(parse_qsl(query)), headers, b"")


def _body(stream: Any, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") == "chunked":
        whole = b""
        while size := int(stream.readline(), 16):
            whole += stream.read(size)
            stream.readline()
        stream.readline()
        return whole
    data: bytes = stream.read(int(headers.get("content-length", 0)))
    return data


def _response(status: int, body: bytes, kind: str) -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def instance(name: str, **fields: Any) -> dict[str, Any]:
    """An instance as the API shows it."""
    return {
        "name": name,
        "uid": f"uid-of-{name}",
        "created_at": 1.7e9,
        "started_at": 1.7e9,
        "state": "running",
        "ready": True,
        "accelerator": "tcg",
        "pid": 4711,
        "host": "here",
        "image": "tiny",
        "cpus": 1,
        "memory": 256 << 20,
        "addresses": ["10.0.2.15"],
        "note": "",
        **fields,
    }


@contextlib.contextmanager
def api_server() -> Iterator[ApiServer]:
    """Running, with a state directory of its own (in /tmp: the path of a socket must be short)."""
    state = tempfile.mkdtemp(prefix="fake-inn-", dir="/tmp")
    server = ApiServer(default_paths(state))
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(Path(state), ignore_errors=True)
