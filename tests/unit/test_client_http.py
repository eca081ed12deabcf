"""The client's own reading of HTTP: strict about what it takes, and always within its deadline."""

from __future__ import annotations

import socket
import threading

import pytest

from innkeeper.client.http import Deadline, Response, WireError, encode_head, send_request


def respond(data: bytes, *, hold: bool = False, seconds: float = 5) -> bytes:
    """The body our client reads from these bytes; with `hold` the connection stays open after them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        if not hold:
            theirs.close()
        return Response(ours, Deadline(seconds)).read()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", b"hi"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
         b"abc0123456789"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\nX-Late: 1\r\n\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", b"x"),
    ],
)  # fmt: skip
def test_bodies(answer: bytes, body: bytes) -> None:
    assert respond(answer) == body


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n0123456789",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad : x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(200)) + b"\r\n",
        b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_refused(answer: bytes) -> None:
    with pytest.raises(WireError):
        respond(answer)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"])
def test_silence_meets_the_deadline(answer: bytes) -> None:
    with pytest.raises(TimeoutError):
        respond(answer, hold=True, seconds=0.05)


def test_slow_dripping_does_not_extend_the_deadline() -> None:
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        with theirs:
            while not stop.wait(0.01):
                try:
                    theirs.sendall(b"H")
                except OSError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with ours, pytest.raises(TimeoutError):
            Response(ours, Deadline(0.1)).read()
    finally:
        stop.set()
        thread.join()


def test_a_line_break_cannot_become_a_header() -> None:
    for target, headers in (("/x\r\nEvil: 1", {}), ("/x", {"A": "b\r\nEvil: 1"}), ("/x", {"A": "b\nE: 1"})):
        with pytest.raises(ValueError, match="line break"):
            encode_head("GET", target, headers)


def test_a_streamed_body_goes_out_in_chunks() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            send_request(ours, Deadline(5), "PUT", "/x", {}, iter([b"ab", b"", b"c" * 20]))
        sent = theirs.makefile("rb").read()
    assert b"Transfer-Encoding: chunked" in sent
    assert sent.endswith(b"\r\n\r\n2\r\nab\r\n14\r\n" + b"c" * 20 + b"\r\n0\r\n\r\n")
