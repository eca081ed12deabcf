"""A person at a terminal (a pty here): raw while attached, and as it was on every way out."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator

import pytest
from cli_harness import server

from fakes.api_server import ApiServer, FakeSocket, instance
from innkeeper.cli.terminal import parse_escape
from innkeeper.errors import BadRequest

__all__ = ["server"]  # a fixture


class Terminal:
    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.shown = b""
        self.process: subprocess.Popen[bytes] | None = None

    def inn(self, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "innkeeper.cli.main", *args],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
        )

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def until(self, text: bytes) -> None:
        end = time.monotonic() + 20
        while text not in self.shown:
            assert select.select([self.master], [], [], max(0, end - time.monotonic()))[0], self.shown
            self.shown += os.read(self.master, 65536)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(20)

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ECHO | termios.ISIG | termios.ICANON)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    os.close(made.master)
    os.close(made.slave)


def shell(ws: FakeSocket) -> None:
    """A guest that repeats what is typed, and ends at `q`."""
    ws.send(b"login: ")
    while isinstance(message := ws.receive(), bytes):
        ws.send(b"<" + message + b">")
        if message == b"q":
            ws.say({"ended": True})
            return


def test_keys_go_to_the_guest_until_the_one_that_detaches(server: ApiServer, terminal: Terminal) -> None:
    server.on_socket("/v1/instances/web/console", shell)
    terminal.inn("console", "web")
    terminal.until(b"attached to web; ctrl-] detaches\r\n")
    terminal.until(b"login: ")
    assert terminal.is_raw
    terminal.type(b"\x03")
    terminal.until(b"<\x03>")
    terminal.type(b"\x1d")
    assert terminal.wait() == 0
    terminal.until(b"inn: detached from web, which runs on")
    assert not terminal.is_raw


def test_the_guest_ends(server: ApiServer, terminal: Terminal) -> None:
    server.on_socket("/v1/instances/web/console", shell)
    terminal.inn("console", "web", "--escape", "none")
    terminal.until(b"attached to web\r\n")
    terminal.type(b"q")
    assert terminal.wait() == 0
    terminal.until(b"inn: the console of web ended")
    assert not terminal.is_raw


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal(server: ApiServer, terminal: Terminal, number: signal.Signals, status: int) -> None:
    server.on_socket("/v1/instances/web/console", shell)
    terminal.inn("console", "web")
    terminal.until(b"login: ")
    assert terminal.process is not None
    terminal.process.send_signal(number)
    assert terminal.wait() == status
    assert not terminal.is_raw


def test_the_daemon_dies(server: ApiServer, terminal: Terminal) -> None:
    server.on_socket("/v1/instances/web/console", shell)
    terminal.inn("console", "web")
    terminal.until(b"login: ")
    threading.Thread(target=server.stop).start()
    assert terminal.wait() == 1
    terminal.until(b"inn: The console of web was closed: the connection was lost")
    assert not terminal.is_raw


def test_run_attaches(server: ApiServer, terminal: Terminal) -> None:
    server.answer("POST", "/v1/instances", lambda request: instance(request.json()["name"]))
    server.on_socket("/v1/instances/.*/console", shell)
    terminal.inn("run", "tiny", "--name", "web")
    terminal.until(b"login: ")
    assert server.sent("POST", "/v1/instances")[0].json()["wait"] == "running"
    terminal.type(b"\x1d")
    assert terminal.wait() == 0
    terminal.until(b"inn console web attaches again")


def test_slow_starts_show_progress(server: ApiServer, terminal: Terminal) -> None:
    def slowly(request: object) -> dict[str, object]:
        time.sleep(0.8)
        return instance("web")

    server.answer("POST", "/v1/instances", slowly)
    terminal.inn("run", "tiny", "--name", "web", "-d")
    terminal.until(b"starting web 0.")
    terminal.until(b"web\r\n")
    assert terminal.wait() == 0


@pytest.mark.parametrize(
    ("words", "path"), [(("snapshot", "create", "web"), "snapshots"), (("save", "web"), "save")]
)
def test_how_much_of_a_snapshot_is_written(
    server: ApiServer, terminal: Terminal, words: tuple[str, ...], path: str
) -> None:
    looks = iter(range(1, 100))

    def snapshot(request: object) -> dict[str, object]:
        written = min(4, next(looks)) << 20
        one = {"name": "s1", "state": "taking", "total_bytes": 4 << 20, "written_bytes": written}
        return {"snapshots": [one], "current": ""}

    def slowly(request: object) -> dict[str, object]:
        time.sleep(1.5)
        done = {"name": "s1", "note": "", "pause_ms": 20.0, "size_bytes": 4 << 20}
        return done if path == "snapshots" else instance("web")

    server.answer("GET", "/v1/instances/web/snapshots", snapshot)
    server.answer("POST", f"/v1/instances/web/{path}", slowly)
    terminal.inn(*words)
    terminal.until(b"web: 1.0 MiB of 4.0 MiB")
    terminal.until(b"50% web: 2.0 MiB of 4.0 MiB")
    assert terminal.wait() == 0


@pytest.mark.parametrize(
    ("text", "key"),
    [("ctrl-]", b"\x1d"), ("^]", b"\x1d"), ("ctrl-a", b"\x01"), ("C-A", b"\x01"), ("~", b"~"), ("none", b"")],
)
def test_escape_keys(text: str, key: bytes) -> None:
    assert parse_escape(text) == key


@pytest.mark.parametrize("text", ["", "ctrl-", "ctrl-1", "ab", "ä"])
def test_bad_escape_keys(text: str) -> None:
    with pytest.raises(BadRequest, match="Not a key"):
        parse_escape(text)
