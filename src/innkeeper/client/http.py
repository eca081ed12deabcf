"""HTTP/1.1 as a client needs it, on a connected socket.

http.client would do, but it brings in the email package and takes as long to import as the rest of
`inn list` together. This reads one response per connection and refuses whatever it does not
understand: a length it cannot parse is an error, never a guess.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator, Mapping

_LINE_MAX = 65536
_HEADERS_MAX = 100
_CHUNK = 65536
CONNECTION_ENDED = "the connection ended"
BROKEN_OFF = "the answer breaks off"


class WireError(Exception):
    """The other side broke off, or what it sent is not HTTP."""


class Deadline:
    """A point in time that a whole exchange must meet, whatever number of reads it takes."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def remaining(self) -> float | None:
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def encode_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: innkeeper", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    text = "\r\n".join(lines)
    # Nothing a user typed may become a header line or a second request.
    if "\n" in text.replace("\r\n", "") or text.count("\r\n") != len(lines) - 1:
        raise ValueError("a line break in a request header")
    return f"{text}\r\n\r\n".encode("ascii")


def send_request(
    sock: socket.socket,
    deadline: Deadline,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes | Iterable[bytes] | None,
) -> None:
    """Send one request; a body of unknown length goes out in chunks as it comes."""
    extra = dict(headers)
    if isinstance(body, bytes):
        extra["Content-Length"] = str(len(body))
    elif body is not None:
        extra["Transfer-Encoding"] = "chunked"
    elif method in ("POST", "PUT", "PATCH"):
        extra["Content-Length"] = "0"
    head = encode_head(method, target, extra)
    sock.settimeout(deadline.remaining())
    if body is None or isinstance(body, bytes):
        sock.sendall(head + (body or b""))
        return
    sock.sendall(head)
    for part in body:
        if part:
            sock.settimeout(deadline.remaining())
            sock.sendall(b"%x\r\n%b\r\n" % (len(part), part))
    sock.sendall(b"0\r\n\r\n")


class Response:
    """Status and headers at once, the body as it is read. Close it (or read it to the end)."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self._buffer = b""
        self._in_body = False
        self.status, self.headers = self._head()
        while 100 <= self.status < 200:
            self.status, self.headers = self._head()

    def set_deadline(self, deadline: Deadline) -> None:
        """Another limit for the body: a stream may last longer than its head may take."""
        self._deadline = deadline

    def read(self) -> bytes:
        return b"".join(self.parts())

    def parts(self) -> Iterator[bytes]:
        """The body, in pieces as they arrive."""
        self._in_body = True
        try:
            if self.status in (204, 304):
                return
            coding = self.headers.get("transfer-encoding")
            length = self.headers.get("content-length")
            if coding is not None:
                if coding.lower() != "chunked":
                    raise WireError(f"unknown transfer encoding {coding!r}")
                yield from self._chunks()
            elif length is not None:
                if not (length.isascii() and length.isdigit()):
                    raise WireError(f"not a length: {length!r}")
                yield from self._exactly(int(length))
            else:
                while part := self._take(_CHUNK):
                    yield part
        finally:
            self.close()

    def close(self) -> None:
        self._sock.close()

    def _take(self, limit: int) -> bytes:
        """What is there, at most `limit` bytes; empty at the end of the connection."""
        if not self._buffer:
            self._sock.settimeout(self._deadline.remaining())
            self._buffer = self._sock.recv(_CHUNK)
        part, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return part

    def _exactly(self, length: int) -> Iterator[bytes]:
        while length:
            part = self._take(min(length, _CHUNK))
            if not part:
                raise WireError(BROKEN_OFF)
            length -= len(part)
            yield part

    def _chunks(self) -> Iterator[bytes]:
        while True:
            size = self._line().split(b";", 1)[0].strip()
            # int() alone would also take "+5", "-5", "0x5" and "1_0".
            if not size or not all(digit in b"0123456789abcdefABCDEF" for digit in size):
                raise WireError("not a chunk size")
            length = int(size, 16)
            if length == 0:
                while self._line():
                    pass
                return
            yield from self._exactly(length)
            if self._line():
                raise WireError("a chunk is longer than it says")

    def _line(self) -> bytes:
        line = b""
        while b"\n" not in self._buffer:
            line += self._buffer
            if len(line) > _LINE_MAX:
                raise WireError("a header line is too long")
            self._buffer = b""
            self._sock.settimeout(self._deadline.remaining())
            self._buffer = self._sock.recv(_CHUNK)
            if not self._buffer:
                raise WireError(BROKEN_OFF if self._in_body else CONNECTION_ENDED)
        rest, self._buffer = self._buffer.split(b"\n", 1)
        line += rest
        if len(line) > _LINE_MAX:
            raise WireError("a header line is too long")
        return line.removesuffix(b"\r")

    def _head(self) -> tuple[int, dict[str, str]]:
        parts = self._line().decode("latin-1").split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or len(parts[1]) != 3:
            raise WireError("this is not HTTP")
        if not (parts[1].isascii() and parts[1].isdigit()):
            raise WireError("this is not HTTP")
        headers: dict[str, str] = {}
        while line := self._line():
            name, colon, value = line.decode("latin-1").partition(":")
            name = name.lower()
            if not colon or not name or name != name.strip():
                raise WireError("a malformed header line")
            value = value.strip()
            if name in ("content-length", "transfer-encoding") and headers.get(name, value) != value:
                raise WireError(f"two different values of {name}")
            headers[name] = value
            if len(headers) > _HEADERS_MAX:
                raise WireError("too many header lines")
        return int(parts[1]), headers
