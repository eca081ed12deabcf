"""Start a daemon in the background where none answers.

Two command lines started together must start one daemon: a lock is held from looking to answering.
The daemon has a lock of its own on its store, so a mistake here could at worst start one in vain.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from innkeeper import errors
from innkeeper.client.http import Deadline
from innkeeper.paths import Paths, make_private_dir

# Half a second as a rule; an emulated or overloaded host was seen to take 12.
ANSWER_WITHIN_S: Final = 30.0
_LOOK_EVERY_S: Final = 0.01
_LOG_TAIL_BYTES: Final = 4096


def start_daemon(paths: Paths, notify: Callable[[str], None], *, stop_command: str) -> None:
    """Return when a daemon answers at `paths.api_socket`. Raises the daemon's own error when it refuses to
    start, DaemonUnreachable when none answers. `notify` is told (once) when this call started one."""
    _make_directories(paths)
    with _start_lock(paths):
        if _answers(paths):
            return
        pid, reason = _spawn(paths)
        try:
            ours = _await_answer(paths, pid, reason)
        finally:
            os.close(reason)
        if ours:
            notify(
                f"started the daemon in the background (pid {pid}; log {paths.daemon_log}; "
                f"stop it with {stop_command})"
            )


def _make_directories(paths: Paths) -> None:
    try:
        # Not chmod'ed when it exists: `--state` may name any directory.
        paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private_dir(paths.run)
    except OSError as error:
        raise errors.DaemonUnreachable(
            f"No daemon runs, and none can be started: cannot use {error.filename}: {error.strerror}",
            hint="choose a state directory of your own with --state DIR",
        ) from error


@contextmanager
def _start_lock(paths: Paths) -> Iterator[None]:
    deadline = Deadline(ANSWER_WITHIN_S + 5)
    fd = os.open(paths.start_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _pause(deadline, "Another inn has been starting the daemon for too long", paths)
        yield
    finally:
        os.close(fd)


def _spawn(paths: Paths) -> tuple[int, int]:
    """The daemon's pid, and a descriptor that has its error when it ends at start."""
    # Imported here: most commands find a daemon that runs.
    import subprocess

    try:
        log = open(paths.daemon_log, "ab")  # noqa: SIM115
    except OSError as error:
        raise errors.DaemonUnreachable(f"Cannot write {paths.daemon_log}: {error.strerror}") from error
    reason, report = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with log:
        # The directory is told in the environment only where the user chose one, so that the daemon
        # otherwise finds system or session mode by itself.
        own = paths.run == paths.state / "run"
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", "innkeeper.daemon", "--report-fd", str(report)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | ({"INNKEEPER_STATE": str(paths.state)} if own else {}),
                cwd="/",
                start_new_session=True,
                pass_fds=[report],
            )
        except OSError as error:
            os.close(reason)
            raise errors.DaemonUnreachable(f"Cannot start the daemon: {error.strerror}") from error
        finally:
            os.close(report)
    child.returncode = 0  # It outlives us on purpose: Popen's destructor must not complain.
    return child.pid, reason


def _await_answer(paths: Paths, pid: int, reason: int) -> bool:
    """Whether the daemon that answers is the one with this pid (another may have been first)."""
    deadline = Deadline(ANSWER_WITHIN_S)
    while not _answers(paths):
        ended = _exit_status(pid)
        if ended is not None:
            if _answers(paths):
                return False
            _raise_reason(reason)
            raise errors.DaemonUnreachable(
                f"The daemon did not start (exit status {ended}): {last_line(paths.daemon_log)}",
                hint=f"its log is {paths.daemon_log}",
            )
        _pause(deadline, f"The daemon (pid {pid}) did not answer within {ANSWER_WITHIN_S:g} s", paths)
    return _exit_status(pid) is None


def _raise_reason(reason: int) -> None:
    """The daemon's own error, if it left one."""
    import json

    try:
        told = errors.from_dict(json.loads(os.read(reason, _LOG_TAIL_BYTES)))
    except (OSError, ValueError, AttributeError):
        return
    told.message = f"The daemon did not start: {told.message}"
    raise told


def _exit_status(pid: int) -> int | None:
    """How our child ended, or None while it runs."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0  # Somebody in this process reaped it already.
    return os.waitstatus_to_exitcode(status) if found else None


def _pause(deadline: Deadline, complaint: str, paths: Paths) -> None:
    try:
        deadline.remaining()
    except TimeoutError:
        raise errors.DaemonUnreachable(
            f"{complaint}: {last_line(paths.daemon_log)}", hint=f"its log is {paths.daemon_log}"
        ) from None
    time.sleep(_LOOK_EVERY_S)


def _answers(paths: Paths) -> bool:
    """Whether a daemon accepts a connection. Other reasons than its absence are raised."""
    from innkeeper.client.transport import connect_unix

    try:
        connect_unix(paths, Deadline(ANSWER_WITHIN_S)).close()
    except errors.DaemonUnreachable as error:
        if error.details.get("reason") == "absent":
            return False
        raise
    return True


def last_line(log: Path) -> str:
    """The last line of a log that has something in it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"no log ({error.strerror})"
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
