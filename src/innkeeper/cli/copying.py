"""Copy files and directories into and out of a guest, with the manners of `cp -r`.

A file goes through the daemon's file requests, a directory as a tar stream through exec. Nothing
half-written takes the place of what was there: a download becomes visible when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from innkeeper import errors
from innkeeper.cli.app import note
from innkeeper.cli.output import clean

if TYPE_CHECKING:
    from innkeeper.client.instance import Instance

_CHUNK: Final = 256 * 1024
# The path is an argument, not part of the script: nothing in it is ever interpreted.
_PROBE: Final = (
    'if [ -d "$1" ]; then echo dir; '
    'elif [ -e "$1" ]; then echo "file $(stat -L -c %a "$1" 2>/dev/null)"; else echo missing; fi'
)
_UNPACK: Final = 'mkdir -p "$1" && exec tar -C "$1" -xf -'


def upload(instance: Instance, source: str, target: str) -> None:
    """`source` is ours (`-`: standard input), `target` a path in the guest."""
    if source == "-":
        instance.write_file(target, _pieces(sys.stdin.buffer))
        return
    if not os.path.exists(source):
        raise errors.NotFound(f"No such file or directory: {source}", hint="see ls")
    name = os.path.basename(os.path.abspath(source))
    if target.endswith("/") or _probe(instance, target)[0] == "dir":
        target = posixpath.join(target, name)
    if os.path.isdir(source):
        _upload_directory(instance, source, target)
        return
    with open(source, "rb") as file:
        instance.write_file(target, _pieces(file), mode=os.fstat(file.fileno()).st_mode & 0o777)


def download(instance: Instance, source: str, target: str) -> None:
    """`source` is a path in the guest, `target` ours (`-`: standard output)."""
    kind, mode = _probe(instance, source)
    if kind == "missing":
        raise errors.NotFound(f"No such file or directory in {instance.name}: {source}")
    if target == "-":
        if kind == "dir":
            raise errors.BadRequest(f"{source} is a directory", hint="name a directory to copy it to")
        for part in instance.read_file(source):
            sys.stdout.buffer.write(part)
        return
    name = posixpath.basename(source.rstrip("/"))
    final = Path(target)
    if final.is_dir() and name not in ("", ".", ".."):
        final = final / name
    elif target.endswith("/") and kind == "file":
        raise errors.NotFound(f"No such directory: {target}", hint="make it first")
    if not final.absolute().parent.is_dir():
        raise errors.NotFound(f"No such directory: {final.parent}", hint="make it first")
    if kind == "dir":
        _download_directory(instance, source, final)
    else:
        _download_file(instance, source, final, mode)


def _probe(instance: Instance, path: str) -> tuple[str, int]:
    """`dir`, `file` or `missing`, and a file's mode. A guest without a shell has only files."""
    done = instance.exec(["/bin/sh", "-c", _PROBE, "sh", path], timeout_s=30)
    words = done.stdout.decode(errors="replace").split()
    if done.status != 0 or not words:
        return "file", 0o644
    with contextlib.suppress(IndexError, ValueError):
        return words[0], int(words[1], 8) & 0o777
    return words[0], 0o644


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while part := file.read(_CHUNK):
        yield part


def _download_file(instance: Instance, source: str, final: Path, mode: int) -> None:
    if final.exists() and not final.is_file():
        # A device or a pipe: written to, not replaced.
        with final.open("wb") as sink:
            for part in instance.read_file(source):
                sink.write(part)
        return
    draft = final.with_name(f".{final.name}.inn-{os.getpid()}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            for part in instance.read_file(source):
                file.write(part)
        os.replace(draft, final)
    finally:
        draft.unlink(missing_ok=True)


def _upload_directory(instance: Instance, source: str, target: str) -> None:
    read_end, write_end = os.pipe()
    problems: list[Exception] = []

    def pack() -> None:
        try:
            with open(write_end, "wb") as pipe, tarfile.open(fileobj=pipe, mode="w|") as archive:
                archive.add(source, arcname=".", filter=_owned_by_the_unpacker)
        except BrokenPipeError:
            pass  # The guest stopped reading; its exit status says why.
        except Exception as error:
            problems.append(error)

    packer = threading.Thread(target=pack, daemon=True)
    packer.start()
    said = bytearray()
    try:
        status = instance.exec_streamed(
            ["/bin/sh", "-c", _UNPACK, "sh", target],
            stdin=read_end,
            on_stdout=said.extend,
            on_stderr=said.extend,
        )
    finally:
        os.close(read_end)
        packer.join()
    if problems:
        raise errors.Failed(f"Cannot read all of {source}: {problems[0]}") from problems[0]
    _check_tar(instance, status, said)


def _owned_by_the_unpacker(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """User ids of the host mean nothing in the guest."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _download_directory(instance: Instance, source: str, final: Path) -> None:
    if final.is_dir():
        _unpack_into(instance, source, final)
        return
    draft = final.with_name(f".{final.name}.inn-{os.getpid()}")
    draft.mkdir()
    try:
        _unpack_into(instance, source, draft)
        os.replace(draft, final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _unpack_into(instance: Instance, source: str, directory: Path) -> None:
    """The archive comes from the guest and is hostile until shown otherwise: `safe_extract` judges it."""
    from innkeeper.guest.untar import safe_extract

    read_end, write_end = os.pipe()
    problems: list[Exception] = []
    skipped: list[tuple[str, str]] = []

    def unpack() -> None:
        try:
            with open(read_end, "rb") as pipe:
                skipped.extend(safe_extract(pipe, directory).skipped)
                while pipe.read(_CHUNK):
                    pass  # What pads the end; left in the pipe, it would break the writer.
        except Exception as error:
            problems.append(error)

    unpacker = threading.Thread(target=unpack, daemon=True)
    unpacker.start()
    said = bytearray()
    status = 0
    try:
        with open(write_end, "wb", buffering=0) as sink, contextlib.suppress(BrokenPipeError):
            status = instance.exec_streamed(
                ["tar", "-C", source, "-cf", "-", "."], on_stdout=_WholeWriter(sink), on_stderr=said.extend
            )
    finally:
        unpacker.join()
    # A guest's tar that failed also leaves a broken archive: its own words explain more.
    _check_tar(instance, status, said)
    if problems:
        if isinstance(problems[0], errors.InnkeeperError):
            raise problems[0]
        raise errors.Failed(f"Cannot unpack {source} of {instance.name}: {problems[0]}") from problems[0]
    for member, why in skipped:
        note(f"left out {clean(member)}: {clean(why)}")


class _WholeWriter:
    """Writes all of each piece: an unbuffered file may take only a part of it."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._fd = sink.fileno()

    def __call__(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


def _check_tar(instance: Instance, status: int, said: bytearray) -> None:
    if status != 0:
        lines = said.decode(errors="replace").split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), f"exit status {status}")
        raise errors.CommandFailed(
            f"tar in {instance.name} failed: {reason}", hint="the guest needs tar to copy directories"
        )
