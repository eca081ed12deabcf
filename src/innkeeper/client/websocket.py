"""A websocket on a unix socket, for one thread: the codec is the websockets library's, the waiting ours.

One loop waits for the socket and for a file descriptor (a terminal, a pipe) together and never blocks
on one of them alone. With blocking writes, `inn exec vm -- cat <big` could stand still for ever: we
would write input while the guest waits for us to take its output.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from innkeeper.client.http import CONNECTION_ENDED, Deadline, WireError

_CHUNK = 65536
# Above this much unsent data, no more input is taken from the user.
BACKLOG_MAX = 256 * 1024
_MESSAGE_MAX = 16 * 1024 * 1024

Message = bytes | str


class WebSocket:
    def __init__(self, sock: socket.socket, protocol: ClientProtocol) -> None:
        # With a timeout set, send() itself would wait, whatever its flags say.
        sock.setblocking(False)
        self._sock = sock
        self._protocol = protocol
        self._outgoing = bytearray()
        self._messages: list[Message] = []
        self._fragments: list[bytes] = []
        self._is_text = False
        self._heard = False
        self._eof = False

    @classmethod
    def open(cls, sock: socket.socket, target: str, deadline: Deadline) -> WebSocket:
        """Shake hands. Raises the server's error when it refuses."""
        protocol = ClientProtocol(parse_uri(f"ws://innkeeper{target}"), max_size=_MESSAGE_MAX)
        ws = cls(sock, protocol)
        protocol.send_request(protocol.connect())
        ws._collect()
        while protocol.state is State.CONNECTING and not ws._eof and protocol.handshake_exc is None:
            ws.wait(timeout_s=deadline.remaining())
            deadline.remaining()
        if protocol.state is State.CONNECTING or protocol.handshake_exc is not None:
            raise ws._refusal(deadline)
        return ws

    @property
    def closed(self) -> bool:
        """No more messages will come (those taken in so far may still wait in `take`). Not only when the
        connection has gone: the other side's goodbye is its last word."""
        return self._eof or self._protocol.close_rcvd is not None

    @property
    def close_reason(self) -> str:
        """Why the other side closed, in its words; empty for an ordinary end."""
        received = self._protocol.close_rcvd
        if received is not None and received.code not in (1000, 1001, 1005):
            return received.reason or f"code {received.code}"
        return "" if received is not None else "the connection was lost"

    @property
    def backlog(self) -> int:
        return len(self._outgoing)

    def send(self, message: Message) -> None:
        """Queue a message; `wait` carries it out."""
        if self._protocol.state is not State.OPEN:
            return
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._collect()

    def take(self) -> list[Message]:
        """The messages that have come since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def wait(self, also: Sequence[int] = (), timeout_s: float | None = None) -> list[int]:
        """Wait until something can be moved, move it, and return those of `also` to be read."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._outgoing else 0))
        for fd in also:
            poll.register(fd, select.POLLIN)
        found = dict(poll.poll(None if timeout_s is None else max(0, timeout_s) * 1000))
        happened = found.pop(self._sock.fileno(), 0)
        if happened & select.POLLOUT:
            self._flush()
        if happened & ~select.POLLOUT:
            self._receive()
        return list(found)

    def close(self, timeout_s: float = 1.0) -> None:
        """Say goodbye and wait a moment for the answer, so that the server sees an orderly end."""
        try:
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(1000)
                self._collect()
                deadline = Deadline(timeout_s)
                while not self.closed:
                    self.wait(timeout_s=deadline.remaining())
        except (OSError, TimeoutError):
            pass
        finally:
            self._sock.close()

    def _collect(self) -> None:
        """Take from the codec what it wants sent; an empty piece means: no more from us."""
        for data in self._protocol.data_to_send():
            self._outgoing += data
        self._flush()

    def _flush(self) -> None:
        try:
            while self._outgoing:
                sent = self._sock.send(memoryview(self._outgoing)[:_CHUNK])
                del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            # What the other side said last may still be there to be read.
            self._outgoing.clear()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if data:
            self._heard = True
            self._protocol.receive_data(data)
        else:
            self._eof = True
            self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._frame(event)
        self._collect()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._fragments, self._is_text = [], frame.opcode is Opcode.TEXT
        elif frame.opcode is not Opcode.CONT:
            return
        self._fragments.append(bytes(frame.data))
        if frame.fin:
            whole = b"".join(self._fragments)
            self._messages.append(whole.decode(errors="replace") if self._is_text else whole)
            self._fragments = []

    def _refusal(self, deadline: Deadline) -> Exception:
        from innkeeper.client.transport import error_of_response

        while not self._eof:
            self.wait(timeout_s=deadline.remaining())
        refused = self._protocol.handshake_exc
        if isinstance(refused, InvalidStatus):
            return error_of_response(refused.response.status_code, bytes(refused.response.body or b""))
        if isinstance(refused, InvalidHandshake) and self._heard:
            return WireError(str(refused))
        return WireError(CONNECTION_ENDED)
