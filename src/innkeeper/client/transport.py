"""Requests to the daemon's unix socket: JSON, bytes, event streams, websockets.

The one place where what goes wrong on the wire becomes an error of errors.py.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from innkeeper import errors
from innkeeper.client.http import (
    BROKEN_OFF,
    CONNECTION_ENDED,
    Deadline,
    Response,
    WireError,
    send_request,
)
from innkeeper.paths import Paths

if TYPE_CHECKING:
    from innkeeper.client.websocket import WebSocket

# A question about what is known; the daemon answers these in milliseconds.
READ_S = 30.0
# A verb: boots, builds and guests' shutdowns take their time. The daemon has a deadline of its own,
# so this one is only met when the daemon itself hangs.
VERB_S = 900.0
# What a verb with a deadline of its own (`timeout_s`) gets on top, for the way there and back.
MARGIN_S = 30.0
# Moving a file: whole disk images may go through a guest agent at a few MB/s.
TRANSFER_S = 4 * 3600.0

Query = Mapping[str, str | int | float | bool | None]


class ServerEvent:
    """One server-sent event."""

    __slots__ = ("data", "id", "kind")

    def __init__(self, kind: str, data: str, event_id: str) -> None:
        self.kind = kind
        self.data = data
        self.id = event_id

    def json(self) -> Any:
        return _parse_json(self.data.encode())


def verb_deadline(timeout_s: float | None) -> float:
    return VERB_S if timeout_s is None else timeout_s + MARGIN_S


def segment(text: str) -> str:
    """One part of a URL path."""
    return quote(text, safe="")


class Transport:
    """Opens a connection per request: on a unix socket that costs about 0.1 ms, and nothing has to be
    repaired after the daemon was restarted. `start_daemon` is called once when nobody listens."""

    def __init__(self, paths: Paths, start_daemon: Callable[[], None] | None = None) -> None:
        self.paths = paths
        self._start_daemon = start_daemon

    def json(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        timeout_s: float = READ_S,
    ) -> Any:
        """Send JSON, return the JSON answered."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            with self.stream(method, path, query=query, data=data, headers=headers, timeout_s=timeout_s) as r:
                return _parse_json(r.read())
        except errors.DaemonUnreachable as error:
            # The daemon ended under our feet. Looking again is harmless; a verb may have been carried out.
            if method != "GET" or error.details.get("reason") != "lost":
                raise
        with self.stream(method, path, query=query, headers=headers, timeout_s=timeout_s) as r:
            return _parse_json(r.read())

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        data: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = READ_S,
        body_timeout_s: float | None = None,
    ) -> Iterator[Response]:
        """The response, with its body still to be read. `timeout_s` holds for the whole exchange, or
        up to the head of the answer where the body has `body_timeout_s` (0: no limit) of its own."""
        target = path + _query_string(query)
        deadline = Deadline(timeout_s)
        sock = self.connect(deadline)
        try:
            with _translated(self.paths, timeout_s):
                response = _exchange(sock, deadline, method, target, headers or {}, data)
                if response.status >= 400:
                    raise error_of_response(response.status, response.read())
                if body_timeout_s is not None:
                    response.set_deadline(Deadline(body_timeout_s or None))
                yield response
        finally:
            sock.close()

    def events(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        body_timeout_s: float = 0,
    ) -> Iterator[ServerEvent]:
        """Server-sent events, until the server ends the stream."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "text/event-stream", "Content-Type": "application/json"}
        with self.stream(
            method, path, query=query, data=data, headers=headers, body_timeout_s=body_timeout_s
        ) as response:
            yield from parse_events(response.parts())

    def websocket(self, path: str, *, query: Query | None = None, timeout_s: float = READ_S) -> WebSocket:
        from innkeeper.client.websocket import WebSocket

        deadline = Deadline(timeout_s)
        sock = self.connect(deadline)
        try:
            with _translated(self.paths, timeout_s):
                return WebSocket.open(sock, path + _query_string(query), deadline)
        except BaseException:
            sock.close()
            raise

    def connect(self, deadline: Deadline) -> socket.socket:
        """A connected socket; starts the daemon when nobody listens and we may."""
        try:
            return connect_unix(self.paths, deadline)
        except errors.DaemonUnreachable as error:
            if self._start_daemon is None or error.details.get("reason") != "absent":
                raise
        self._start_daemon()
        return connect_unix(self.paths, deadline)


def connect_unix(paths: Paths, deadline: Deadline) -> socket.socket:
    """Raises DaemonUnreachable; its details say `absent` when a daemon could be started there."""
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(deadline.remaining())
            sock.connect(str(paths.api_socket))
            return sock
        except BlockingIOError:
            # The backlog is full: on a unix socket that is an error at once, not a wait (connect(2)).
            sock.close()
            time.sleep(0.005)
        except OSError as error:
            sock.close()
            raise _unreachable(paths, error) from error
        except BaseException:
            sock.close()
            raise


def _unreachable(paths: Paths, error: OSError) -> errors.DaemonUnreachable:
    where = paths.api_socket
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return errors.DaemonUnreachable(
            f"No daemon answers at {where}", hint="start one: inn serve", details={"reason": "absent"}
        )
    if isinstance(error, PermissionError):
        return errors.DaemonUnreachable(
            f"No permission to use the daemon's socket {where}",
            hint="run inn as the user who owns it, or choose a daemon of your own with --state DIR",
            details={"reason": "permission"},
        )
    if isinstance(error, TimeoutError):
        return errors.DaemonUnreachable(
            f"The daemon at {where} does not accept connections",
            hint=f"see its log: {paths.daemon_log}",
            details={"reason": "timeout"},
        )
    return errors.DaemonUnreachable(
        f"Cannot connect to {where}: {error.strerror or error}", details={"reason": "other"}
    )


def _exchange(
    sock: socket.socket,
    deadline: Deadline,
    method: str,
    target: str,
    headers: Mapping[str, str],
    data: bytes | Iterable[bytes] | None,
) -> Response:
    try:
        send_request(sock, deadline, method, target, headers, data)
    except (BrokenPipeError, ConnectionResetError) as lost:
        # The server may refuse an upload before it has read all of it: then its answer says why.
        try:
            return Response(sock, deadline)
        except (OSError, WireError):
            raise lost from None
    return Response(sock, deadline)


@contextmanager
def _translated(paths: Paths, timeout_s: float | None) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise errors.DaemonUnreachable(
            f"The daemon did not answer within {timeout_s or 0:g} s",
            hint=f"see its log: {paths.daemon_log}",
            details={"reason": "timeout"},
        ) from error
    except (BrokenPipeError, ConnectionError) as error:
        raise _lost(paths) from error
    except WireError as error:
        if str(error) == CONNECTION_ENDED:
            raise _lost(paths) from error
        if str(error) == BROKEN_OFF:
            raise errors.Failed(
                "The answer broke off before its end", hint="the VM or the daemon may have stopped; try again"
            ) from error
        raise errors.DaemonUnreachable(
            f"What answers at {paths.api_socket} is no Innkeeper daemon: {error}",
            hint="see which program listens there",
            details={"reason": "protocol"},
        ) from error


def _lost(paths: Paths) -> errors.DaemonUnreachable:
    return errors.DaemonUnreachable(
        "The daemon ended before it answered",
        hint=f"look with inn list and try again; its log is {paths.daemon_log}",
        details={"reason": "lost"},
    )


def error_of_response(status: int, body: bytes) -> errors.InnkeeperError:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        return errors.from_dict(answer["error"])
    if status in (404, 405):
        return errors.Unsupported(
            "The daemon does not know this request",
            hint="it may be an older version: restart it with inn serve --stop",
        )
    return errors.Failed(f"The daemon answered with HTTP status {status}", hint="see its log")


def error_in(message: Any) -> errors.InnkeeperError | None:
    """The error in an answer of the form {"error": {...}}, if it is one."""
    if isinstance(message, dict) and isinstance(message.get("error"), dict):
        return errors.from_dict(message["error"])
    return None


def _parse_json(data: bytes) -> Any:
    if not data:
        return None
    try:
        return json.loads(data)
    except ValueError as error:
        raise errors.DaemonUnreachable(
            "The daemon's answer is not JSON", details={"reason": "protocol"}
        ) from error


def _query_string(query: Query | None) -> str:
    given: dict[str, str] = {}
    for name, value in (query or {}).items():
        if value is not None:
            given[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return "?" + urlencode(given) if given else ""


def parse_events(parts: Iterable[bytes]) -> Iterator[ServerEvent]:
    """Events of a text/event-stream (HTML standard, 9.2.6)."""
    kind, data, event_id = "message", list[str](), ""
    for line in _lines(parts):
        if not line:
            if data:
                yield ServerEvent(kind, "\n".join(data), event_id)
            kind, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            kind = value
        elif field == "id":
            event_id = value


def _lines(parts: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode(errors="replace")
