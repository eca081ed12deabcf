"""A handle on one instance: its data as last seen, and its verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from innkeeper import errors
from innkeeper.client.advice import Advised
from innkeeper.client.inspect import Inspectable
from innkeeper.client.transport import READ_S, TRANSFER_S, verb_deadline

if TYPE_CHECKING:
    from innkeeper.client.exec import Completed
    from innkeeper.client.snapshots import Snapshots
    from innkeeper.client.try_ import Keep, OnOutput, TryResult

Json = dict[str, Any]

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def check_existing_name(name: str) -> None:
    """What could not be a name does not exist; sent on, a slash or a dot would become part of the path."""
    if not name or not _NAME_CHARACTERS.issuperset(name):
        raise errors.NotFound(f"No instance is named {name!r}", hint="see inn list")


class Instance(Inspectable, Advised):
    """Verbs return when they are done, and `data` is then what the daemon answered."""

    def start(self, *, wait: str = "running", timeout_s: float | None = None) -> Instance:
        return self._verb("start", {"wait": wait}, timeout_s)

    def stop(self, *, timeout_s: float | None = None) -> Instance:
        """Ask the guest to shut down, and wait for it."""
        return self._verb("stop", {}, timeout_s)

    def restart(self, *, wait: str = "running", timeout_s: float | None = None) -> Instance:
        return self._verb("restart", {"wait": wait}, timeout_s)

    def pause(self) -> Instance:
        return self._verb("pause", {}, None)

    def resume(self) -> Instance:
        return self._verb("resume", {}, None)

    def kill(self) -> Instance:
        """End it at once, like pulling the plug."""
        return self._verb("kill", {}, None)

    def fork(
        self,
        *,
        count: int = 1,
        name: str = "",
        cpus: int | None = None,
        ssh_keys: bool = False,
        start: bool = True,
        remove_when_ended: bool = False,
        hold: str = "",
        wait: str = "ready",
        timeout_s: float | None = None,
    ) -> Json:
        """Copies of it as it is now: `instances`, and `pause_ms`, how long it stood still. `name` is a
        pattern with {} for the number; `cpus` only of one that is off; `hold` is for client.try_."""
        body: Json = {
            "count": count,
            "name": name,
            "ssh_keys": ssh_keys,
            "start": start,
            "remove_when_ended": remove_when_ended,
            "wait": wait,
        }
        body |= {"hold": hold} if hold else {}
        body |= {"cpus": cpus} if cpus is not None else {}
        if timeout_s is not None:
            body["timeout_s"] = timeout_s
        answer: Json = self._transport.json(
            "POST", f"{self._path}/fork", body=body, timeout_s=verb_deadline(timeout_s)
        )
        return answer

    def template(
        self,
        *,
        pool: int | None = None,
        serves_image: bool | None = None,
        timeout_s: float | None = None,
    ) -> Instance:
        """Freeze it, for others to start from, or change that of a template: how many copies are spawned
        ahead, and whether new instances of its image start from it."""
        body = {"pool": pool, "serves_image": serves_image}
        return self._verb(
            "template", {key: value for key, value in body.items() if value is not None}, timeout_s
        )

    def clone(self, name: str, **options: Any) -> Instance:
        """An independent copy under that name; see client.clone for the options."""
        from innkeeper.client.clone import clone

        return clone(self, self._transport, name, **options)

    def explain(self, verb: str, *, count: int = 1, cpus: int | None = None) -> Json:
        """What would block this verb now, or follow from it, without doing it: `allowed`, `findings`."""
        query: Json = {"verb": verb, "count": count} | ({"cpus": cpus} if cpus is not None else {})
        answer: Json = self._transport.json("GET", f"{self._path}/explain", query=query)
        return answer

    def keep(self) -> Instance:
        """It was to be removed when its run, or what holds it, ends; now it stays."""
        return self._verb("keep", {}, None)

    def try_(
        self,
        commands: Sequence[str] | Sequence[Sequence[str]],
        n: int | None = None,
        *,
        env: Mapping[str, str] | None = None,
        envs: Sequence[Mapping[str, str]] = (),
        keep: Keep = "none",
        name: str = "",
        changes: bool = True,
        timeout_s: float | None = None,
        on_output: OnOutput | None = None,
    ) -> list[TryResult]:
        """Run one command in each of `n` forks, or one of several in each, side by side; what each did
        and which files it changed. The forks are removed again, but for those to `keep`; `name` is for
        the best one. See client.try_."""
        from innkeeper.client.try_ import Trial, attempts_of

        attempts = attempts_of(commands, n, envs, env)
        return Trial(self._transport, self, attempts, keep, name, changes, timeout_s, on_output).run()

    def sibling(self, data: Json) -> Instance:
        """A handle on another instance of the same daemon."""
        return Instance(self._transport, data)

    @property
    def snapshots(self) -> Snapshots:
        """Its snapshots: create, list, get, restore, remove."""
        from innkeeper.client.snapshots import Snapshots

        return Snapshots(self._transport, self.name)

    def save(self, *, compress: bool = False, timeout_s: float | None = None) -> Instance:
        """Stop it with its whole state kept on disk."""
        return self._verb("save", {"compress": compress}, 3600.0 if timeout_s is None else timeout_s)

    def restore(self, *, wait: str = "ready", timeout_s: float | None = None) -> Instance:
        """Let it run on from where it was saved."""
        return self._verb("restore", {"wait": wait}, timeout_s)

    def remove(self, *, force: bool = False, snapshots: bool = False) -> None:
        query = {"force": force, "snapshots": snapshots or None}
        self._transport.json("DELETE", self._path, query=query, timeout_s=verb_deadline(None))

    def wait(self, what: str = "ready", *, timeout_s: float | None = None) -> Instance:
        """Until it is `ready`, `running` or `stopped`."""
        self.data = self._transport.json(
            "GET",
            f"{self._path}/wait",
            query={"for": what, "timeout_s": timeout_s},
            timeout_s=verb_deadline(timeout_s),
        )
        return self

    def update(self, changes: Mapping[str, Any]) -> Json:
        """Change what may change on a running instance (see InstanceUpdate)."""
        answer: Json = self._transport.json(
            "PATCH", self._path, body=dict(changes), timeout_s=verb_deadline(None)
        )
        return answer

    def argv(self) -> list[str]:
        """The exact QEMU command line."""
        return list(self._transport.json("GET", f"{self._path}/argv")["argv"])

    def qos(self) -> Json:
        """What it is promised of its host's CPU time, what that comes to when all are busy, and whether it is
        in force."""
        answer: Json = self._transport.json("GET", f"{self._path}/qos")
        return answer

    def history(self, *, since: float | None = None, resolution_s: float | None = None) -> Json:
        """What it used: `times`, and for each value the `average` and `peak` of each bucket of `step_s`
        seconds. `since` is in seconds since the epoch; a day is kept, the last ten minutes closely."""
        query = {"since": since, "resolution": resolution_s}
        answer: Json = self._transport.json("GET", f"{self._path}/metrics", query=query)
        return answer

    def why(self, *, since: str = "60s") -> Json:
        """Why it is slow: a `verdict`, and `causes` by what they cost, with who used what it lacked and what
        to do. `since`: how long a time up to now, such as 60s, 10m or 24h."""
        answer: Json = self._transport.json("GET", f"{self._path}/why", query={"since": since})
        return answer

    def logs(
        self, source: str = "console", *, tail_bytes: int | None = None, follow: bool = False
    ) -> Iterator[bytes]:
        """The serial output, or what QEMU said; with `follow`, as it comes."""
        query = {"source": source, "tail_bytes": tail_bytes, "follow": follow}
        with self._transport.stream("GET", f"{self._path}/logs", query=query, body_timeout_s=0) as response:
            yield from response.parts()

    def screenshot(self) -> bytes:
        """The screen as a PNG."""
        with self._transport.stream("GET", f"{self._path}/screenshot", timeout_s=READ_S) as response:
            return response.read()

    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Completed:
        """Run a command in the guest and collect what it prints."""
        from innkeeper.client.exec import Completed

        out, err = bytearray(), bytearray()
        status = self.exec_streamed(
            argv, stdin=stdin, env=env, timeout_s=timeout_s, on_stdout=out.extend, on_stderr=err.extend
        )
        return Completed(status, bytes(out), bytes(err))

    def exec_streamed(
        self,
        argv: Sequence[str],
        *,
        on_stdout: Callable[[bytes], object],
        on_stderr: Callable[[bytes], object],
        stdin: bytes | int | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Run a command in the guest; its output goes to the callbacks as it comes. `stdin` may be a
        file descriptor."""
        from innkeeper.client import exec as exec_

        return exec_.run(
            self._transport,
            self.name,
            argv,
            stdin=stdin,
            env=env,
            timeout_s=timeout_s,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
        )

    def console(
        self,
        *,
        output: Callable[[bytes], object],
        stdin: int | None = None,
        escape: bytes = b"",
        timeout_s: float | None = None,
        on_open: Callable[[], object] = lambda: None,
    ) -> bool:
        """See client.console.attach."""
        from innkeeper.client import console

        where, name = self._transport, self.name
        return console.attach(
            where, name, output=output, stdin=stdin, escape=escape, timeout_s=timeout_s, on_open=on_open
        )

    def read_file(self, path: str) -> Iterator[bytes]:
        """A file of the guest, in pieces."""
        with self._transport.stream(
            "GET", f"{self._path}/files", query={"path": path}, body_timeout_s=TRANSFER_S
        ) as response:
            yield from response.parts()

    def write_file(self, path: str, content: bytes | Iterable[bytes], *, mode: int | None = None) -> None:
        """Create or replace a file of the guest."""
        query = {"path": path, "mode": None if mode is None else f"{mode:04o}"}
        with self._transport.stream(
            "PUT",
            f"{self._path}/files",
            query=query,
            data=content,
            headers={"Content-Type": "application/octet-stream"},
            timeout_s=TRANSFER_S,
        ) as response:
            response.read()
