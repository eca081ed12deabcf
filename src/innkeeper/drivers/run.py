"""The only place that starts child processes.

Two ways: `Runner.run` waits for a short-lived program, always with a deadline; `Runner.spawn` starts
one that outlives us (QEMU, passt, a daemon in the background) in a session of its own.
`FaultyRunner` wraps a runner and fails where a test tells it to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Final, Protocol

from innkeeper.drivers import thp
from innkeeper.errors import CommandFailed, Unsupported

# A child that prints without end must not fill our memory.
OUTPUT_LIMIT_BYTES: Final = 64 * 1024 * 1024
# After a deadline: SIGTERM, this long for its own clean-up, then SIGKILL.
TERM_GRACE_S: Final = 2.0

_PACKAGES: Final[dict[str, str]] = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-riscv64": "qemu-system-misc",
    "qemu-img": "qemu-utils",
    "passt": "passt",
    "mmdebstrap": "mmdebstrap",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "mke2fs": "e2fsprogs",
    "sfdisk": "fdisk",
    "cpio": "cpio",
    "mcopy": "mtools",
    "mformat": "mtools",
}


@dataclass(frozen=True)
class Finished:
    """What a program that ended left behind."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")

    @property
    def complaint(self) -> str:
        """The last line it wrote to stderr: usually the reason it failed."""
        lines = [line for line in self.stderr.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit status {self.status}"


@dataclass(frozen=True)
class Limits:
    """Resource limits of a child that reads untrusted input (an image, an archive).

    The numbers for qemu-img follow OpenStack and oVirt, which cap it since CVE-2015-5162:
    1 GiB of address space and 30 s of CPU are ample for an honest image's metadata.
    """

    cpu_s: int | None = None
    address_space_bytes: int | None = None
    file_size_bytes: int | None = None

    def apply(self, pid: int) -> None:
        for what, limit in (
            (resource.RLIMIT_CPU, self.cpu_s),
            (resource.RLIMIT_AS, self.address_space_bytes),
            (resource.RLIMIT_FSIZE, self.file_size_bytes),
        ):
            if limit is not None:
                resource.prlimit(pid, what, (limit, limit))


UNTRUSTED_IMAGE: Final = Limits(cpu_s=30, address_space_bytes=1 << 30)


@dataclass(frozen=True)
class Owner:
    """Whom a child runs as; only root may choose."""

    uid: int
    gid: int
    extra_gids: tuple[int, ...] = ()


class Runner(Protocol):
    async def run(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        stdin: bytes = b"",
        check: bool = True,
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Finished:
        """Run to the end. `env` is added to ours; `on_line` gets each line of stdout and stderr as
        it comes (for progress). Raises CommandFailed on a non-zero status (with `check`) or when
        the deadline passes, Unsupported when the program is not installed."""

    def spawn(
        self,
        argv: Sequence[str],
        *,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
        pass_fds: Sequence[int] = (),
        owner: Owner | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        huge_pages: bool = True,
    ) -> int:
        """Start a program that outlives us and return its pid: own session, no stdin, only
        `pass_fds` open; without `huge_pages` it gets no transparent ones. The caller watches and reaps
        it (engine.qemu.process.Process)."""


def missing_program(name: str) -> Unsupported:
    package = _PACKAGES.get(os.path.basename(name))
    hint = f"install it: apt-get install {package}" if package else f"install {name}"
    return Unsupported(f"{name} is not installed", hint=hint)


def which(name: str) -> str | None:
    """Full path of a program; also looks in the sbin directories, which users often lack."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


class SystemRunner:
    async def run(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        stdin: bytes = b"",
        check: bool = True,
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Finished:
        program = which(argv[0])
        if program is None:
            raise missing_program(argv[0])
        child = await asyncio.create_subprocess_exec(
            program,
            *argv[1:],
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **env} if env else None,
            cwd=cwd,
            start_new_session=True,
        )
        try:
            if limits:
                with contextlib.suppress(ProcessLookupError):
                    limits.apply(child.pid)
            async with asyncio.timeout(deadline_s):
                _, out, err, status = await asyncio.gather(
                    _feed(child.stdin, stdin),
                    _drain(child.stdout, on_line),
                    _drain(child.stderr, on_line),
                    child.wait(),
                )
        except TimeoutError:
            raise CommandFailed(
                f"{argv[0]} did not finish within {deadline_s:g} s",
                hint="the host may be overloaded; try again",
            ) from None
        finally:
            await _end_group(child)
        finished = Finished(tuple(argv), status, out, err)
        if check and status != 0:
            raise CommandFailed(
                f"{argv[0]} failed: {finished.complaint}",
                details={
                    "argv": list(argv),
                    "status": status,
                    "stderr": err.decode(errors="replace")[-4000:],
                },
            )
        return finished

    def spawn(
        self,
        argv: Sequence[str],
        *,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
        pass_fds: Sequence[int] = (),
        owner: Owner | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        huge_pages: bool = True,
    ) -> int:
        program = which(argv[0])
        if program is None:
            raise missing_program(argv[0])
        try:
            with contextlib.nullcontext() if huge_pages else thp.denied():
                child = subprocess.Popen(
                    [program, *argv[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=tuple(pass_fds),
                    start_new_session=True,
                    user=owner.uid if owner else None,
                    group=owner.gid if owner else None,
                    extra_groups=list(owner.extra_gids) if owner else None,
                    env={**os.environ, **env} if env else None,
                    cwd=cwd,
                )
        except OSError as error:
            raise CommandFailed(f"Cannot start {argv[0]}: {error.strerror}") from error
        child.returncode = 0  # its watcher reaps it; Popen's destructor must not complain
        return child.pid


async def _feed(pipe: asyncio.StreamWriter | None, data: bytes) -> None:
    if pipe is None:
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        pipe.write(data)
        await pipe.drain()
    pipe.close()


async def _drain(pipe: asyncio.StreamReader | None, on_line: Callable[[str], None] | None) -> bytes:
    assert pipe is not None
    kept, line = bytearray(), bytearray()
    while chunk := await pipe.read(65536):
        if len(kept) < OUTPUT_LIMIT_BYTES:
            kept += chunk
        if on_line:
            line += chunk
            *whole, rest = bytes(line).replace(b"\r", b"\n").split(b"\n")
            line = bytearray(rest[-65536:])
            for one in whole:
                if one.strip():
                    on_line(one.decode(errors="replace"))
    return bytes(kept)


async def _end_group(child: asyncio.subprocess.Process) -> None:
    """Nothing of a finished or abandoned child stays: its whole session is ended."""
    if child.returncode is not None:
        return
    for sig in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sig)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), TERM_GRACE_S)
            return


@dataclass
class FaultyRunner:
    """A runner that fails on demand, for tests: `fail["qemu-img"] = error` raises before that
    program starts; `fail_after["qemu-img"] = error` lets it do its work first."""

    inner: Runner
    fail: dict[str, Exception] = field(default_factory=dict)
    fail_after: dict[str, Exception] = field(default_factory=dict)
    calls: list[tuple[str, ...]] = field(default_factory=list)

    async def run(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        stdin: bytes = b"",
        check: bool = True,
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Finished:
        name = self._enter(argv)
        finished = await self.inner.run(
            argv,
            deadline_s=deadline_s,
            stdin=stdin,
            check=check,
            limits=limits,
            env=env,
            cwd=cwd,
            on_line=on_line,
        )
        if name in self.fail_after:
            raise self.fail_after[name]
        return finished

    def spawn(
        self,
        argv: Sequence[str],
        *,
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
        pass_fds: Sequence[int] = (),
        owner: Owner | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        huge_pages: bool = True,
    ) -> int:
        self._enter(argv)
        return self.inner.spawn(
            argv,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            owner=owner,
            env=env,
            cwd=cwd,
            huge_pages=huge_pages,
        )

    def _enter(self, argv: Sequence[str]) -> str:
        self.calls.append(tuple(argv))
        name = os.path.basename(argv[0])
        if name in self.fail:
            raise self.fail[name]
        return name
