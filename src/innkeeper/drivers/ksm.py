"""The kernel's merging of equal pages: reading what it does, and turning it on and off.

Sources: Documentation/admin-guide/mm/ksm.rst (counters, run, advisor_mode), Documentation/scheduler/
sched-stats.rst (schedstat).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from innkeeper.errors import Failed, Unsupported

# What we change, and therefore put back.
KNOBS: Final = ("run", "pages_to_scan", "sleep_millisecs")
STOPPED: Final = 0
RUNNING: Final = 1
UNMERGING: Final = 2  # stopped, and every page its own again
# Host-wide, whatever daemons there are: /run is empty after a boot, as the kernel's settings are.
CLAIM: Final = Path("/run/innkeeper-ksm.json")


@dataclass(frozen=True, slots=True)
class Counters:
    """`saved_bytes`: what merged pages would take more if each user had its own. `profit_bytes`: that less
    the kernel's own account of it; None before Linux 6.4. `advised`: the kernel chooses the speed (6.8)."""

    run: int
    pages_to_scan: int
    sleep_ms: int
    saved_bytes: int
    shared_bytes: int
    profit_bytes: int | None
    full_scans: int
    advised: bool


class Ksm:
    """`root` is where /sys and /proc lie."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._directory = root / "sys/kernel/mm/ksm"
        self._ksmd: int | None = None

    def read(self) -> Counters | None:
        """None where the kernel has none of it."""
        try:
            page = os.sysconf("SC_PAGE_SIZE")
            return Counters(
                run=self._number("run"),
                pages_to_scan=self._optional("pages_to_scan") or 0,
                sleep_ms=self._optional("sleep_millisecs") or 0,
                saved_bytes=(self._optional("pages_sharing") or 0) * page,
                shared_bytes=(self._optional("pages_shared") or 0) * page,
                profit_bytes=self._optional("general_profit"),
                full_scans=self._optional("full_scans") or 0,
                advised="[scan-time]" in self._text("advisor_mode"),
            )
        except (OSError, ValueError):
            return None

    def refuse_unless_writable(self) -> None:
        """Raises Unsupported without the right to write."""
        if not os.access(self._directory / "run", os.W_OK):
            raise _only_root()

    def write(self, knob: str, value: int) -> None:
        """Raises Unsupported without the right to, Failed when the kernel refuses."""
        assert knob in KNOBS, knob
        try:
            (self._directory / knob).write_text(f"{value}\n")
        except PermissionError as error:
            raise _only_root() from error
        except OSError as error:
            raise Failed(
                f"The kernel refused {knob}={value} in {self._directory}: {error.strerror}",
                hint="see the kernel's log (dmesg)",
            ) from error

    def knobs(self) -> dict[str, int]:
        """What would have to be put back. Raises Unsupported where there is none of it."""
        try:
            return {knob: self._number(knob) for knob in KNOBS}
        except (OSError, ValueError) as error:
            raise Unsupported("This kernel merges no pages (CONFIG_KSM)") from error

    def cpu_seconds(self) -> float | None:
        """CPU time ksmd has used since the boot; None where there is no such thread or no account."""
        if self._ksmd is None:
            self._ksmd = self._find()
        try:
            return int((self._root / f"proc/{self._ksmd}/schedstat").read_text().split()[0]) / 1e9
        except (OSError, ValueError, IndexError):
            return None

    def _find(self) -> int:
        """A kernel thread begins with the kernel and never ends, so it is looked for once: every process
        there is. 0 where it cannot be seen, as in a container."""
        with contextlib.suppress(OSError):
            for pid in sorted(int(name) for name in os.listdir(self._root / "proc") if name.isdigit()):
                with contextlib.suppress(OSError):
                    if (self._root / f"proc/{pid}/comm").read_text() == "ksmd\n":
                        return pid
        return 0

    def _text(self, name: str) -> str:
        try:
            return (self._directory / name).read_text()
        except OSError:
            return ""

    def _number(self, name: str) -> int:
        return int((self._directory / name).read_text())

    def _optional(self, name: str) -> int | None:
        try:
            return self._number(name)
        except (OSError, ValueError):
            return None


def _only_root() -> Unsupported:
    return Unsupported(
        "Only root may change how this host merges equal pages (/sys/kernel/mm/ksm)",
        hint="run the daemon as root, or have root set it: echo 1 > /sys/kernel/mm/ksm/run",
    )


class Claim:
    """Who of several daemons tunes KSM, and what it was like before.

    The lock is the kernel's and ends with its holder; the file stays until somebody has put back what is in
    it: the holder, the next one, or `inn doctor --fix`.
    """

    def __init__(self, path: Path = CLAIM) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        return self._fd is not None

    def take(self, now: Mapping[str, int]) -> bool:
        """Take it, noting `now` as what it was like, unless a daemon that is gone left a note: then that is
        what it was like. False when another daemon has it. Raises Failed when nothing can be noted."""
        if not self._lock():
            return False
        try:
            if self.former() is None:
                self._note(json.dumps(dict(now)))
        except OSError as error:
            self._unlock()
            raise Failed(f"Cannot write {self._path}: {error.strerror}", hint="is /run writable?") from error
        return True

    def former(self) -> dict[str, int] | None:
        """What it was like before somebody changed it; None: nobody did."""
        try:
            found = json.loads(self._path.read_text())
            return {knob: int(found[knob]) for knob in KNOBS}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def abandoned(self) -> bool:
        """Somebody changed it and is gone."""
        if self.held or self.former() is None or not self._lock():
            return False
        self._unlock()
        return True

    def release(self) -> None:
        """Everything was put back."""
        if self.held:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._unlock()

    def let_go(self) -> None:
        """End without having put anything back: the note stays."""
        self._unlock()

    def _note(self, text: str) -> None:
        assert self._fd is not None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def _lock(self) -> bool:
        if self._fd is not None:
            return True
        for _ in range(3):
            try:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError:
                return False
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_ino == os.stat(self._path).st_ino:  # not one that was just removed
                    self._fd = fd
                    return True
            except BlockingIOError:
                os.close(fd)
                return False
            except OSError:
                pass
            os.close(fd)
        return False

    def _unlock(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def put_back(ksm: Ksm, claim: Claim) -> bool:
    """Make KSM as it was before anybody of us changed it. False: nothing to do, or another daemon has it.
    Merged pages stay merged until they are written. Raises Failed, Unsupported; it is noted then, still."""
    former = claim.former()
    if former is None or not claim.take(former):
        return False
    counters = ksm.read()
    for knob in ("run", "sleep_millisecs", "pages_to_scan"):
        if knob == "pages_to_scan" and counters is not None and counters.advised:
            continue  # the kernel chooses it, and refuses others
        ksm.write(knob, former[knob] if (knob, former[knob]) != ("run", UNMERGING) else STOPPED)
    claim.release()
    return True
