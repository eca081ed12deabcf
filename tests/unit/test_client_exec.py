"""Websockets of the client: commands in a guest, and its console."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from fakes.api_server import ApiServer, FakeSocket, Raw, api_server
from innkeeper import errors
from innkeeper.client.client import Client
from innkeeper.client.instance import Instance
from innkeeper.client.transport import Transport

EXEC = "/v1/instances/web/exec"
CONSOLE = "/v1/instances/web/console"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as running:
        yield running


@pytest.fixture
def vm(server: ApiServer) -> Instance:
    return Client(Transport(server.paths)).instances.handle("web")


def test_output_and_status(server: ApiServer, vm: Instance) -> None:
    asked: list[object] = []

    def run(ws: FakeSocket) -> None:
        asked.append(json.loads(ws.receive() or ""))
        ws.send(b"\x01out")
        ws.send(b"\x02err")
        ws.send(b"\x01")  # a sign of life, without data
        ws.send(b"\x01more")
        ws.say({"exit_status": 7})

    server.on_socket(EXEC, run)
    done = vm.exec(["ls", "-l"], env={"A": "b"}, timeout_s=9)
    assert (done.status, done.stdout, done.stderr) == (7, b"outmore", b"err")
    assert asked == [{"argv": ["ls", "-l"], "env": {"A": "b"}, "stdin": False, "timeout_s": 9}]


def echo(ws: FakeSocket) -> None:
    """`cat`: what comes in goes out."""
    ws.receive()
    while isinstance(message := ws.receive(), bytes):
        ws.send(b"\x01" + message)
    ws.say({"exit_status": 0 if message == "eof" else 1})


@pytest.mark.timeout(60)
def test_much_goes_in_and_out_at_once(server: ApiServer, vm: Instance) -> None:
    server.on_socket(EXEC, echo)
    data = os.urandom(3_000_000)
    assert vm.exec(["cat"], stdin=data).stdout == data


def test_input_is_streamed_from_a_descriptor(server: ApiServer, vm: Instance) -> None:
    server.on_socket(EXEC, echo)
    read_end, write_end = os.pipe()
    got = bytearray()

    def feed(part: bytes) -> None:
        # The second line is written only once the first has come back: nothing waits for the end.
        got.extend(part)
        if got == b"one\n":
            os.write(write_end, b"two\n")
            os.close(write_end)

    os.write(write_end, b"one\n")
    try:
        assert vm.exec_streamed(["cat"], stdin=read_end, on_stdout=feed, on_stderr=feed) == 0
    finally:
        os.close(read_end)
    assert got == b"one\ntwo\n"


def test_an_error_is_the_answer(server: ApiServer, vm: Instance) -> None:
    def refuse(ws: FakeSocket) -> None:
        ws.receive()
        ws.say({"error": errors.AgentMissing("No agent answers", hint="wait").to_dict()})
        ws.close(1011)

    server.on_socket(EXEC, refuse)
    with pytest.raises(errors.AgentMissing, match="No agent answers; wait"):
        vm.exec(["true"])


def test_refused_before_the_handshake(server: ApiServer, vm: Instance) -> None:
    server.answer("GET", EXEC, errors.WrongState("It does not run"))
    with pytest.raises(errors.WrongState, match="does not run"):
        vm.exec(["true"])
    server.answer("GET", EXEC, Raw(b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n"))
    with pytest.raises(errors.Failed, match="403"):
        vm.exec(["true"])
    server.answer("GET", EXEC, Raw(b"what?\r\n\r\n"))
    with pytest.raises(errors.DaemonUnreachable, match="no Innkeeper daemon"):
        vm.exec(["true"])
    server.answer("GET", EXEC, Raw(b""))
    with pytest.raises(errors.DaemonUnreachable, match="ended before"):
        vm.exec(["true"])


def test_the_connection_is_lost(server: ApiServer, vm: Instance) -> None:
    def vanish(ws: FakeSocket) -> None:
        ws.receive()
        ws.send(b"\x01half")
        ws._connection.shutdown(socket.SHUT_RDWR)

    server.on_socket(EXEC, vanish)
    with pytest.raises(errors.Failed, match="ended before the command did"):
        vm.exec(["true"])


def test_no_command(vm: Instance) -> None:
    with pytest.raises(errors.BadRequest, match="No command"):
        vm.exec([])


def console(vm: Instance, stdin: int | None = None, escape: bytes = b"\x1d") -> tuple[bytes, bool]:
    shown = bytearray()
    left = vm.console(output=shown.extend, stdin=stdin, escape=escape, timeout_s=5)
    return bytes(shown), left


def test_console_shows_what_is_said_and_ends_with_the_vm(server: ApiServer, vm: Instance) -> None:
    def talk(ws: FakeSocket) -> None:
        ws.send(b"boot\r\n")
        ws.send(b"")
        ws.send(b"login: ")
        ws.say({"ended": True})

    server.on_socket(CONSOLE, talk)
    assert console(vm) == (b"boot\r\nlogin: ", False)


def test_console_key_detaches(server: ApiServer, vm: Instance) -> None:
    typed: list[object] = []
    closed = threading.Event()

    def listen(ws: FakeSocket) -> None:
        while (message := ws.receive()) is not None:
            typed.append(message)
        closed.set()

    server.on_socket(CONSOLE, listen)
    read_end, write_end = os.pipe()
    os.write(write_end, b"ls\r\x1dnot this")
    try:
        assert console(vm, read_end) == (b"", True)
    finally:
        os.close(read_end)
        os.close(write_end)
    assert closed.wait(5)
    assert typed == [b"ls\r"]


def test_end_of_input_does_not_end_the_console(server: ApiServer, vm: Instance) -> None:
    def answer(ws: FakeSocket) -> None:
        assert ws.receive() == b"uptime\n"
        ws.send(b"up 3 days")

    server.on_socket(CONSOLE, answer)
    read_end, write_end = os.pipe()
    os.write(write_end, b"uptime\n")
    os.close(write_end)
    try:
        assert console(vm, read_end, b"") == (b"up 3 days", False)
    finally:
        os.close(read_end)


def test_console_timeout_and_errors(server: ApiServer, vm: Instance) -> None:
    server.on_socket(CONSOLE, lambda ws: print(ws.receive()))
    assert vm.console(output=lambda data: None, timeout_s=0.05)

    def refuse(ws: FakeSocket) -> None:
        ws.say({"error": errors.WrongState("It does not run").to_dict()})
        ws.close(1011)

    server.on_socket(CONSOLE, refuse)
    with pytest.raises(errors.WrongState):
        console(vm)
    server.on_socket(CONSOLE, lambda ws: ws.close(1011, "the daemon is stopping"))
    with pytest.raises(errors.Failed, match="the daemon is stopping"):
        console(vm)
