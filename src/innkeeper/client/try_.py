"""Try commands, each in a fork of its own of one running VM, and see what became of it.

All copies are made at one moment, run their commands side by side, and are removed, but for those that
are to be kept. The daemon removes them too when this process ends, however it ends (`hold`).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from innkeeper.client import changes as files
from innkeeper.client.hold import hold
from innkeeper.client.transport import Transport, segment
from innkeeper.errors import (
    AgentMissing,
    BadRequest,
    Failed,
    InnkeeperError,
    NameTaken,
    NotFound,
    WrongState,
)

if TYPE_CHECKING:
    from innkeeper.client.instance import Instance

Keep = Literal["none", "best", "failed", "all"]
# index of the copy, its name, 1 for stdout or 2 for stderr, data; called from several threads
OnOutput = Callable[[int, str, int, bytes], object]
T = TypeVar("T")

MAX_COUNT: Final = 256
_LIST_S: Final = 300.0
_ASIDE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One command, and what is in its environment beside TRY_INDEX and TRY_COUNT."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class TryResult:
    """What became of one attempt. `status` is None when its command did not run to its end: then
    `error` says why. `changes` is None when they were not looked for, or `note` says why not."""

    index: int
    name: str
    argv: tuple[str, ...]
    status: int | None = None
    seconds: float = 0.0
    stdout: bytes = b""
    stderr: bytes = b""
    error: str = ""
    changes: files.Changes | None = None
    note: str = ""
    kept: bool = False

    @property
    def succeeded(self) -> bool:
        return self.status == 0


def rank(result: TryResult) -> tuple[bool, int, float]:
    """The smallest is the best: what ran to its end, the lowest exit status, the shortest time."""
    return result.status is None, result.status or 0, result.seconds


def best_of(results: Sequence[TryResult]) -> TryResult | None:
    """The quickest of those that succeeded."""
    return min((one for one in results if one.succeeded), key=rank, default=None)


def exit_status(results: Sequence[TryResult]) -> int:
    """0 when any succeeded, else the status of the one that came nearest; 1 when none ran to its end."""
    status = min(results, key=rank).status
    return 1 if status is None else status


def to_keep(results: Sequence[TryResult], keep: Keep) -> list[TryResult]:
    if keep == "best":
        best = best_of(results)
        return [best] if best else []
    return [one for one in results if keep == "all" or (keep == "failed" and not one.succeeded)]


def attempts_of(
    commands: Sequence[str] | Sequence[Sequence[str]],
    count: int | None,
    envs: Sequence[Mapping[str, str]] = (),
    env: Mapping[str, str] | None = None,
) -> list[Attempt]:
    """One attempt per copy, from one command for all or one for each, and environments likewise."""
    if not commands:
        raise BadRequest("No command given", hint="write it after --")
    argvs = [tuple(commands)] if isinstance(commands[0], str) else [tuple(one) for one in commands]
    given = {len(some) for some in (argvs, envs) if len(some) > 1} | ({count} if count else set())
    wanted = max(given, default=1)
    if len(given) > 1:
        counts = f"{len(argvs)} commands, {len(envs)} environments, {count or wanted} copies"
        raise BadRequest(f"These do not belong together: {counts}", hint="give one for each copy")
    if not 1 <= wanted <= MAX_COUNT:
        raise BadRequest(f"Cannot try {wanted} at a time", hint=f"from 1 to {MAX_COUNT}")
    attempts: list[Attempt] = []
    for index in range(wanted):
        argv = argvs[index if len(argvs) > 1 else 0]
        own = envs[index if len(envs) > 1 else 0] if envs else {}
        numbers = {"TRY_INDEX": str(index), "TRY_COUNT": str(wanted)}
        attempts.append(Attempt(tuple(map(str, argv)), {**(env or {}), **own, **numbers}))
    return attempts


@dataclass(slots=True)
class _Child:
    instance: Instance
    attempt: Attempt
    result: TryResult
    list: str  # where the list of files before is, if there is one


@dataclass(slots=True)
class Trial:
    """Tries `attempts` in forks of `parent`. `run` once; the other fields tell about it then."""

    transport: Transport
    parent: Instance
    attempts: list[Attempt]
    keep: Keep = "none"
    name: str = ""  # of the best, with keep="best"
    changes: bool = True
    timeout_s: float | None = None
    on_output: OnOutput | None = None
    pause_ms: float = 0.0
    times_s: dict[str, float] = field(default_factory=dict)

    def run(self) -> list[TryResult]:
        if self.name:
            self._check_name()
        token = secrets.token_hex(8)
        with hold(self.transport, token):
            place = self._timed("list", self._list_once) if self.changes else ""
            try:
                children = self._timed("fork", lambda: self._fork(token, place))
                return self._run(children)
            finally:
                if place:
                    with suppress(InnkeeperError):
                        self.parent.exec(["sh", "-c", files.FORGET, "sh", place], timeout_s=_ASIDE_S)

    def _run(self, children: list[_Child]) -> list[TryResult]:
        results = [child.result for child in children]
        remaining = list(children)
        try:
            if self.changes and not children[0].list:
                _in_parallel(_list_own, children)
            self._timed("run", lambda: _in_parallel(self._attempt, children))
            if self.changes:
                self._timed("compare", lambda: _in_parallel(_compare, children))
            for result in to_keep(results, self.keep):
                child = children[result.index]
                if self.name:
                    child.instance.fork(name=self.name)
                    result.name = self.name
                else:
                    child.instance.keep()
                    remaining.remove(child)
                result.kept = True
            return results
        finally:
            self._timed("remove", lambda: _in_parallel(_remove, remaining))

    def _check_name(self) -> None:
        if self.keep != "best":
            raise BadRequest(
                "A name is for the one that is kept as the best", hint="keep the best: --keep best"
            )
        with suppress(NotFound):
            self.transport.json("GET", f"/v1/instances/{segment(self.name)}")
            raise NameTaken(f"There is an instance named {self.name} already", hint="choose another name")

    def _timed(self, what: str, work: Callable[[], T]) -> T:
        begun = time.monotonic()
        try:
            return work()
        finally:
            self.times_s[what] = round(time.monotonic() - begun, 3)

    def _list_once(self) -> str:
        """In the parent, if it can be asked: then every copy has the list in its memory."""
        try:
            return _listed(self.parent)
        except (AgentMissing, WrongState):
            return ""  # it stands still or is off; each copy makes its own

    def _fork(self, token: str, place: str) -> list[_Child]:
        answer = self.parent.fork(count=len(self.attempts), hold=token, remove_when_ended=True)
        self.pause_ms = answer["pause_ms"]
        return [
            _Child(
                self.parent.sibling(data),
                attempt,
                TryResult(index, data["name"], attempt.argv),
                place,
            )
            for index, (data, attempt) in enumerate(zip(answer["instances"], self.attempts, strict=True))
        ]

    def _attempt(self, child: _Child) -> None:
        result, argv = child.result, list(child.attempt.argv)
        if child.list:
            argv = ["sh", "-c", files.RUN, f"{child.list}.mark", *argv]
        out, err = bytearray(), bytearray()

        def sink(stream: int, collected: bytearray) -> Callable[[bytes], None]:
            def take(data: bytes) -> None:
                collected.extend(data)
                if self.on_output:
                    self.on_output(result.index, result.name, stream, data)

            return take

        begun = time.monotonic()
        try:
            result.status = child.instance.exec_streamed(
                argv,
                env=child.attempt.env,
                timeout_s=self.timeout_s,
                on_stdout=sink(1, out),
                on_stderr=sink(2, err),
            )
        except InnkeeperError as error:
            result.error = str(error)
        finally:
            result.seconds = round(time.monotonic() - begun, 3)
            result.stdout, result.stderr = bytes(out), bytes(err)


def _listed(instance: Instance) -> str:
    """List the files of a guest, in the guest; where the list is."""
    done = instance.exec(["sh", "-c", files.LIST, "sh", secrets.token_hex(8)], timeout_s=_LIST_S)
    if done.status != 0:
        raise Failed(f"{instance.name} cannot list its files", hint="leave that out: --no-changes")
    return done.stdout.decode().strip()


def _list_own(child: _Child) -> None:
    try:
        child.list = _listed(child.instance)
    except InnkeeperError as error:
        child.result.note = error.message


def _compare(child: _Child) -> None:
    if not child.list:
        return
    try:
        done = child.instance.exec(["sh", "-c", files.COMPARE, "sh", child.list], timeout_s=_LIST_S)
        child.result.changes = files.parse(done.stdout)
    except InnkeeperError as error:
        child.result.note = error.message


def _remove(child: _Child) -> None:
    """What fails here is tried once more by the daemon, when the hold ends."""
    try:
        child.instance.remove(force=True)
    except NotFound:
        pass  # its command shut it down
    except InnkeeperError as error:
        child.result.note = error.message


def _in_parallel(work: Callable[[_Child], None], children: Sequence[_Child]) -> None:
    """Do it to all at once. Ctrl-C ends the wait; what the threads do then comes to nothing by itself,
    when the VMs go. The first of the errors is raised when all have ended."""
    failures: list[BaseException] = []

    def guarded(child: _Child) -> None:
        try:
            work(child)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(child,), daemon=True) for child in children]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
