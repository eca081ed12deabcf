"""Starting the daemon where none answers: once, with two that try together, and with a reason when it
fails. The daemon is a script here."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from innkeeper import errors
from innkeeper.client import autostart
from innkeeper.paths import Paths, default_paths

LISTEN = """
import os, socket, sys, time
state = os.environ["INNKEEPER_STATE"]
with open(state + "/starts", "a") as file:
    file.write(f"{os.getpid()} {os.getsid(0)}\\n")
listener = socket.socket(socket.AF_UNIX)
listener.bind(state + "/run/api.sock")
listener.listen()
print("ready")
while True:
    listener.accept()
"""


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    state = tempfile.mkdtemp(prefix="fake-inn-", dir="/tmp")
    yield default_paths(state)
    starts = Path(state, "starts")
    for line in starts.read_text().splitlines() if starts.exists() else ():
        pid = int(line.split()[0])
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
    shutil.rmtree(state, ignore_errors=True)


def daemon_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """`python -m innkeeper.daemon` runs this script instead."""
    fake = tmp_path / "python"
    program = tmp_path / "daemon.py"
    program.write_text(script)
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}" "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))


def test_started_once_in_a_session_of_its_own(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    daemon_is(monkeypatch, tmp_path, LISTEN)
    told: list[str] = []
    for _ in range(2):
        autostart.start_daemon(paths, told.append, stop_command="inn serve --stop")
    (line,) = (paths.state / "starts").read_text().splitlines()
    pid, session = line.split()
    assert pid == session
    assert told == [
        f"started the daemon in the background (pid {pid}; log {paths.daemon_log}; "
        "stop it with inn serve --stop)"
    ]


def test_two_at_once_start_one(paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    daemon_is(monkeypatch, tmp_path, "import time; time.sleep(0.2)" + LISTEN)
    told: list[str] = []
    threads = [
        threading.Thread(
            target=autostart.start_daemon, args=(paths, told.append), kwargs={"stop_command": ""}
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((paths.state / "starts").read_text().splitlines()) == 1
    assert len(told) == 1


def test_the_reason_is_the_last_line_of_the_log(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    daemon_is(monkeypatch, tmp_path, "import sys; print('a'); sys.exit('the store is damaged')")
    with pytest.raises(errors.DaemonUnreachable, match=r"exit status 1\): the store is damaged"):
        autostart.start_daemon(paths, lambda told: None, stop_command="")


def test_an_error_of_the_daemon_is_passed_on_as_it_is(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = """
import runpy, sys
sys.path[:0] = PATH
import innkeeper.daemon.main as daemon
from innkeeper.errors import StateInUse

async def refuse(*_: object) -> None:
    raise StateInUse("of another machine", hint="take it over")

daemon._serve = refuse
del sys.argv[1:3]
runpy.run_module("innkeeper.daemon", run_name="__main__")
"""
    daemon_is(monkeypatch, tmp_path, script.replace("PATH", repr(sys.path)))
    with pytest.raises(errors.StateInUse) as caught:
        autostart.start_daemon(paths, lambda told: None, stop_command="")
    assert str(caught.value) == "The daemon did not start: of another machine; take it over"
    assert caught.value.exit_code == 4


def test_one_that_never_answers(paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = LISTEN.replace("listener = ", "print('hm', flush=True); time.sleep(60); listener = ")
    daemon_is(monkeypatch, tmp_path, script)
    monkeypatch.setattr(autostart, "ANSWER_WITHIN_S", 1.0)
    with pytest.raises(errors.DaemonUnreachable, match="did not answer within 1 s: hm"):
        autostart.start_daemon(paths, lambda told: None, stop_command="")


def test_a_state_directory_that_cannot_be() -> None:
    with pytest.raises(errors.DaemonUnreachable, match="none can be started"):
        autostart.start_daemon(default_paths("/proc/nowhere"), lambda told: None, stop_command="")


def test_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert autostart.last_line(log).startswith("no log")
    log.write_text("\n\n")
    assert autostart.last_line(log) == "its log is empty"
    log.write_text("x" * 10000 + "\nlast words \n\n")
    assert autostart.last_line(log) == "last words"
